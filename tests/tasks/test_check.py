from typing import Any

import pytest

from metaformer.data.scan import ImageInfo
from metaformer.distributed import World
from metaformer.errors import BadImage
from metaformer.tasks.check import validate_splits


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_each_process_checks_its_part_of_every_split(rank: int, size: int) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def check(folder: str, **options: Any) -> list[ImageInfo]:
        calls.append((folder, options))
        return [ImageInfo(len(calls))]

    infos = validate_splits(World(rank, rank, size), check, ("train", True), ("val", False))
    assert infos == [[ImageInfo(1)], [ImageInfo(2)]]
    options = {"part": (rank, size), "progress": rank == 0}
    assert calls == [("train", {**options, "skip_bad": True}), ("val", {**options, "skip_bad": False})]


@pytest.mark.parametrize("error", [BadImage("val/3.png", "the file is empty"), KeyError("val")])
def test_the_first_error_is_raised(error: Exception) -> None:
    checked = []

    def check(folder: str, **options: Any) -> list[ImageInfo]:
        checked.append(folder)
        if folder != "train":
            raise error
        return []

    with pytest.raises(type(error), match="val"):
        validate_splits(World(), check, ("train", False), ("val", False), ("test", False))
    assert checked == ["train", "val"]
