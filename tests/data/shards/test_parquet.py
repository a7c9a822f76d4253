import io
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from metaformer.data.shards.index import find_shards
from metaformer.data.shards.parquet import ParquetImages, ParquetShard, read_parquet
from metaformer.data.shards.write import write_shards
from metaformer.data.split import need_two_classes
from metaformer.errors import BadImage, DataError


def opened(root: Path | str, split: str = "train", *args: object, **options: bool) -> ParquetImages:
    shards = find_shards(root, split)
    assert shards is not None and shards.kind == "parquet"
    return ParquetImages(shards, *args, **options)


def png(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def table(root: Path, **columns: list[object]) -> Path:
    (root / "train").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "train/0.parquet")
    return root


@pytest.fixture
def shards(own_pets: Path, tmp_path: Path) -> Path:
    write_shards(own_pets, tmp_path / "shards", shard_size=0.02, workers=1, progress=False)
    return tmp_path / "shards"


@pytest.fixture
def memory() -> Iterator[str]:
    """An object storage in this process."""
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def test_images_have_names_classes_and_labels(shards: Path) -> None:
    train = opened(shards)
    assert train.classes == ("ant", "bee", "cat") and len(train) == 12
    assert list(train.labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert train.path(0) == f"{shards}/train/00000.parquet: ant/0.png"
    assert str(train.paths[11]).endswith("/train/00002.parquet: cat/3.png")
    assert train.image(1).size == (50, 43) and train.image(1).mode == "RGB"
    need_two_classes(train)


def test_labels_follow_the_given_classes(shards: Path) -> None:
    val = opened(shards, "val", ["cat", "ant", "bee"])
    assert val.classes == ("cat", "ant", "bee") and list(val.labels) == [1] * 4 + [2] * 4 + [0] * 4
    with pytest.raises(DataError, match="val: no images of 'dog'"):
        opened(shards, "val", ["cat", "ant", "bee", "dog"])
    assert opened(shards, "val", ["cat", "ant", "bee", "dog"], allow_missing=True).classes[3] == "dog"
    with pytest.raises(DataError, match="'bee' not among the 2 known classes"):
        opened(shards, "val", ["cat", "ant"])


def test_a_source_can_be_sent_to_another_process(shards: Path) -> None:
    train = opened(shards)
    again = pickle.loads(pickle.dumps(train))
    assert again.image(7).tobytes() == train.image(7).tobytes() and again.path(7) == train.path(7)


def test_object_storage_serves_as_well(shards: Path, memory: str) -> None:
    fsspec.filesystem("memory").put(f"{shards}/", "/bucket/", recursive=True)
    local, remote = opened(shards), opened(memory)
    assert remote.path(3) == "memory://bucket/train/00000.parquet: ant/3.png"
    assert all(remote.image(i).tobytes() == local.image(i).tobytes() for i in range(12))
    address = opened(f"file://{shards}")
    assert address.image(5).tobytes() == local.image(5).tobytes()


def test_other_contents_under_the_same_name_are_read_anew(own_pets: Path, tmp_path: Path) -> None:
    for value in (10, 200):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(own_pets / "train/ant/0.png")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write_shards(own_pets, tmp_path / "out", workers=1, progress=False)
        assert opened(tmp_path / "out").image(0).getpixel((0, 0)) == (value,) * 3


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        (
            {"image": [{"bytes": png(), "path": "a.png"}, {"bytes": png(), "path": None}], "label": [1, 0]},
            "01",
        ),
        ({"img": [png(), png()], "cls": ["bee", "ant"], "more": [1.0, 2.0]}, ["ant", "bee"]),
    ],
)
def test_files_of_others_are_read(
    columns: dict[str, list[object]], classes: list[str], tmp_path: Path
) -> None:
    train = opened(table(tmp_path / "data [1]", **columns))
    assert train.classes == tuple(classes) and list(train.labels) == [1, 0]
    assert train.image(1).size == (8, 8) and train.path(1).endswith("train: row 1")


def test_numbers_without_names_are_named_by_a_checkpoint(tmp_path: Path) -> None:
    root = table(tmp_path / "data", image=[png(), png()], label=[1, 0])
    assert opened(root, "train", ["ant", "bee"]).classes == ("ant", "bee")
    with pytest.raises(DataError, match="label 1 has no name"):
        opened(root, "train", ["ant"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.png"], "label": [0]}, "no column of images among image, label"),
        ({"image": [png()], "caption": ["a"]}, "no column of labels among image, caption"),
        ({"image": [png(), png()], "label": [0, None]}, "row 1 has label None"),
        ({"image": [png()], "label": [0.5]}, "row 0 has label 0.5"),
        ({"image": [png()], "label": [-1]}, "label -1 has no name"),
    ],
)
def test_tables_that_are_no_data_set_are_told(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        opened(table(tmp_path / "data", **columns))


def test_bad_images_are_told_by_name_and_no_file_is_opened_for_them(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "canary.png")
    images = [
        {"bytes": b"junk", "path": "ant/0.png"},
        {"bytes": None, "path": str(tmp_path / "canary.png")},
        {"bytes": b"", "path": "ant/2.png"},
        None,
    ]
    train = opened(table(tmp_path / "data", image=images, label=[0, 0, 1, 1]))
    for index, reason in enumerate(("not a JPEG", "no bytes of an image", "empty", "no bytes of an image")):
        with pytest.raises(BadImage, match=reason) as caught:
            train.image(index)
        assert str(caught.value).startswith(f"{tmp_path}/data/train: ")


def test_damaged_files_are_told(shards: Path, tmp_path: Path) -> None:
    file = shards / "train/00001.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:-9])
    with pytest.raises(DataError, match=r"00001\.parquet: \d+ bytes, shards\.json says"):
        opened(shards)
    (shards / "shards.json").unlink()
    for damaged in (data[:-9], b"", b"junk", data[: len(data) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="train: cannot read the parquet files"):
            opened(shards)
    file.unlink()
    assert len(opened(shards)) < 12


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    shard = ParquetShard(tmp_path / "x.parquet", ["ant", "bee"])
    rows = [(i % 2, png(i)) for i in range(5)]
    for label, data in rows:
        shard.add("a", label, data)
    shard.close()
    assert list(read_parquet(tmp_path / "x.parquet")) == rows


def test_a_flipped_bit_never_gets_into_the_cache(shards: Path) -> None:
    file = sorted((shards / "train").glob("*.parquet"))[0]
    good = file.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    file.write_bytes(bad)
    with pytest.raises(DataError, match=r"sha256.*copy it again"):
        opened(shards)
    file.write_bytes(good)
    data = opened(shards)
    assert all(data.image(i).size for i in range(len(data)))


def test_an_empty_index_is_damage(shards: Path) -> None:
    (shards / "shards.json").write_bytes(b"")
    with pytest.raises(DataError, match="not an index of shards"):
        opened(shards)
