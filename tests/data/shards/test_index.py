import json
from pathlib import Path

import pytest

from metaformer.data.shards.index import (
    INDEX,
    Shard,
    damaged_shards,
    find_shards,
    fingerprints,
    index_text,
    label_numbers,
)
from metaformer.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    "names",
    [
        ["train/b.parquet", "train/a.parquet", "val/a.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/val-0.parquet"],
        ["train-000.tar", "train-001.tar", "val-000.tar"],
    ],
)
def test_shards_of_other_writers_are_found_by_their_names(names: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *names, "train/notes.txt")
    found = find_shards(tmp_path, "train")
    assert found is not None and found.kind == names[0].rpartition(".")[2]
    assert list(found.files) == sorted(names[:2]) and found.index is None and found.classes is None
    assert found.urls == [f"{tmp_path}/{name}" for name in sorted(names[:2])]
    assert find_shards(f"file://{tmp_path}", "train") is not None
    assert find_shards(tmp_path, "test") is None


def test_an_image_folder_has_no_shards(own_pets: Path) -> None:
    assert find_shards(own_pets, "train") is None
    assert find_shards(own_pets / "none", "train") is None


def test_tar_files_may_have_a_list_of_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train-0.tar")
    (tmp_path / "classes.txt").write_text("ant\n\nbee\n")
    found = find_shards(tmp_path, "train")
    assert found is not None and found.classes == ("ant", "bee")


def test_the_index_comes_back_as_it_was_written(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.tar", "train/stray.tar")
    shard = Shard("train/0.tar", 1, 1, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    (tmp_path / INDEX).write_text(index_text("tar", ["ant", "bée"], {"train": [shard]}, {"train": []}))
    found = find_shards(tmp_path, "train")
    assert found is not None and found.files == ("train/0.tar",)
    assert found.index == (shard,) and found.classes == ("ant", "bée")
    assert fingerprints(found) == [shard.sha256] and not list(damaged_shards(found))
    with pytest.raises(DataError, match=r"no split 'val'; shards\.json lists train"):
        find_shards(tmp_path, "val")
    (tmp_path / "train/0.tar").write_bytes(b"y")
    assert [line.partition(": ")[2] for line in damaged_shards(found)] == [
        "its contents are not those that were written (sha256)"
    ]
    (tmp_path / "train/0.tar").write_bytes(b"xx")
    assert "2 bytes, shards.json says 1" in next(damaged_shards(found))
    with pytest.raises(DataError, match=r"0\.tar: 2 bytes, shards\.json says 1: copy train/0\.tar again"):
        fingerprints(found)
    (tmp_path / "train/0.tar").unlink()
    assert "cannot be read" in next(damaged_shards(found))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 1}', '{"format": "metaformer shards 1", "kind": "zip"}', "\x00\xff"]
)
def test_a_damaged_index(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"shards\.json: not an index of shards"):
        find_shards(tmp_path, "train")


def test_an_index_with_unknown_fields(tmp_path: Path) -> None:
    values = {"format": "metaformer shards 1", "kind": "tar", "classes": [], "splits": {"train": [{"a": 1}]}}
    (tmp_path / INDEX).write_text(json.dumps(values))
    with pytest.raises(DataError, match="not an index"):
        find_shards(tmp_path, "train")


def test_numbers_become_labels_by_their_names() -> None:
    named = ["ant", "bee", "cat"]
    assert label_numbers("x", named, [0, 1, 2], None, False) == {0: 0, 1: 1, 2: 2}
    assert label_numbers("x", named, [0, 1, 2], ["cat", "ant", "bee"], False) == {0: 1, 1: 2, 2: 0}
    assert label_numbers("x", named, [2], None, False) == {2: 2}
    assert label_numbers("x", named, [2], ["cat", "ant"], True) == {2: 0}
    with pytest.raises(DataError, match="no images of 'ant' and 1 more"):
        label_numbers("x", named, [2], named, False)
    with pytest.raises(DataError, match="'cat' not among the 2 known classes"):
        label_numbers("x", named, [0, 1, 2], ["ant", "bee"], True)
    for number in (3, -1):
        with pytest.raises(DataError, match=f"label {number} has no name"):
            label_numbers("x", named, [number], None, False)
    with pytest.raises(DataError, match="'ant' more than once"):
        label_numbers("x", named, [0], ["ant", "ant"], True)
