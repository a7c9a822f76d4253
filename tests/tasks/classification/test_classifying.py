from pathlib import Path

import pytest

from metaformer.errors import DataError
from metaformer.tasks.classification.evaluate import read_class_subset


def test_a_class_subset_is_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    assert read_class_subset(None, ("a",)) is None
    file.write_text("b\n\n a \n")
    assert read_class_subset(str(file), ("a", "b")) == ["b", "a"]
    file.write_text("c\n")
    with pytest.raises(DataError, match="'c' is no class"):
        read_class_subset(str(file), ("a", "b"))
    file.write_text("\n")
    with pytest.raises(DataError, match="names no class"):
        read_class_subset(str(file), ("a",))
