"""For tests of formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaformer.errors import DataError
from metaformer.tasks.check import Finding
from metaformer.tasks.detection.check import check_objects
from metaformer.tasks.detection.dataset import open_detection

ErrorsOf = Callable[..., tuple[str, tuple[Finding, ...]]]


@pytest.fixture
def errors_of() -> ErrorsOf:
    """Error of opening a training split, and the findings of `metaformer data check`."""

    def both(root: Path, **options: Any) -> tuple[str, tuple[Finding, ...]]:
        with pytest.raises(DataError) as caught:
            open_detection(root, "train", **options)
        report = check_objects(root, ["train"], workers=1, progress=False)
        assert not report.ok
        return str(caught.value), tuple(report.findings)

    return both
