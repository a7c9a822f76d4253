import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from metaformer.data.shards.index import find_shards
from metaformer.data.shards.parquet import ParquetImages, ParquetShard, read_parquet
from metaformer.data.shards.write import write_shards
from metaformer.errors import BadImage, DataError
from toys import gray_png

PNG = gray_png()


def opened(root: Path | str, split: str = "train", *args: object, **options: bool) -> ParquetImages:
    shards = find_shards(root, split)
    assert shards is not None and shards.kind == "parquet"
    return ParquetImages(shards, *args, **options)


def table(root: Path, **columns: list[object]) -> Path:
    (root / "train").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "train/0.parquet")
    return root


@pytest.fixture
def shards(shard_pets: Callable[[str], Path]) -> Path:
    return shard_pets("parquet")


def test_other_contents_under_the_same_name_are_read_anew(own_pets: Path, tmp_path: Path) -> None:
    for value in (10, 200):
        (own_pets / "train/ant/0.png").write_bytes(gray_png(value))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write_shards(own_pets, tmp_path / "out", workers=1, progress=False)
        assert opened(tmp_path / "out").image(0).getpixel((0, 0)) == (value,) * 3


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        (
            {
                "image": [{"bytes": gray_png(), "path": "a.png"}, {"bytes": gray_png(), "path": None}],
                "label": [1, 0],
            },
            "01",
        ),
        ({"img": [PNG, PNG], "cls": ["bee", "ant"], "more": [1.0, 2.0]}, ["ant", "bee"]),
    ],
)
def test_files_of_other_writers_are_read(
    columns: dict[str, list[object]], classes: list[str], tmp_path: Path
) -> None:
    train = opened(table(tmp_path / "data [1]", **columns))
    assert train.classes == tuple(classes) and list(train.labels) == [1, 0]
    assert train.image(1).size == (8, 8) and train.path(1).endswith("train: row 1")


def test_numbers_without_names_are_named_by_a_checkpoint(tmp_path: Path) -> None:
    root = table(tmp_path / "data", image=[PNG, PNG], label=[1, 0])
    assert opened(root, "train", ["ant", "bee"]).classes == ("ant", "bee")
    with pytest.raises(DataError, match="label 1 has no name"):
        opened(root, "train", ["ant"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.png"], "label": [0]}, "no column of images among image, label"),
        ({"image": [PNG], "caption": ["a"]}, "no column of labels among image, caption"),
        ({"image": [PNG, PNG], "label": [0, None]}, "row 1 has label None"),
        ({"image": [PNG], "label": [0.5]}, "row 0 has label 0.5"),
        ({"image": [PNG], "label": [-1]}, "label -1 has no name"),
    ],
)
def test_tables_that_are_no_data_set(columns: dict[str, list[object]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened(table(tmp_path / "data", **columns))


def test_bad_images_are_named_and_no_file_is_opened_for_them(tmp_path: Path) -> None:
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


def test_damaged_files(shards: Path, tmp_path: Path) -> None:
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
    rows = [(i % 2, gray_png(i)) for i in range(5)]
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
