from typing import Any

import pytest

from metaformer.distributed import World
from metaformer.errors import BadImage
from metaformer.tasks.check import validate_splits


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_each_process_looks_at_its_part_of_every_folder(rank: int, size: int) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def check(folder: str, **how: Any) -> None:
        seen.append((folder, how))

    validate_splits(World(rank, rank, size), check, ("train", True), ("val", False))
    how = {"part": (rank, size), "progress": rank == 0}
    assert seen == [("train", {**how, "skip_bad": True}), ("val", {**how, "skip_bad": False})]


def test_what_is_found_first_is_told() -> None:
    seen = []

    def check(folder: str, **how: Any) -> None:
        seen.append(folder)
        if folder != "train":
            raise BadImage(f"{folder}/3.png", "the file is empty")

    with pytest.raises(BadImage, match=r"^val/3\.png: the file is empty"):
        validate_splits(World(), check, ("train", False), ("val", False), ("test", False))
    assert seen == ["train", "val"]


def test_other_errors_are_no_findings() -> None:
    def check(folder: str, **how: Any) -> None:
        raise KeyError(folder)

    with pytest.raises(KeyError):
        validate_splits(World(), check, ("train", False))
