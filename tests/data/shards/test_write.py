import gc
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from metaformer.data.folder import ImageFolder
from metaformer.data.shards.index import FORMATS, INDEX
from metaformer.data.shards.write import ShardReport, write_shards
from metaformer.data.split import open_split
from metaformer.errors import BadImage, ConfigError, DataError, OutputError

SMALL = 0.02
"""Megabytes: a few images to a file."""


def shard(own_pets: Path, out: Path, kind: str = "parquet", **options: object) -> ShardReport:
    return write_shards(own_pets, out, kind=kind, shard_size=SMALL, workers=1, progress=False, **options)


def contents(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_the_report_has_sizes_and_hashes(kind: str, own_pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = shard(own_pets, out, kind)
    assert len(done.splits["train"]) > 2 and sum(s.images for s in done.splits["train"]) == 12
    assert "train: 12 images in" in done.text()
    hashes = contents(out)
    for shards in done.splits.values():
        assert all(hashes[s.file] == s.sha256 and (out / s.file).stat().st_size == s.bytes for s in shards)
    assert not [name for name in hashes if "tmp" in name]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_folder_gives_the_same_bytes(kind: str, own_pets: Path, tmp_path: Path) -> None:
    shard(own_pets, tmp_path / "one", kind)
    shard(own_pets, tmp_path / "two", kind)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_hugging_face_reads_them_as_images_and_classes(own_pets: Path, tmp_path: Path) -> None:
    import datasets

    (tmp_path / "elsewhere").mkdir()
    shard(own_pets, tmp_path / "elsewhere/pets")
    found = datasets.load_dataset(str(tmp_path / "elsewhere/pets"), cache_dir=str(tmp_path / "cache"))
    assert found["train"].features["label"].names == ["ant", "bee", "cat"]
    folder = ImageFolder(own_pets, "train")
    assert found["train"][5]["image"].tobytes() == folder.image(5).tobytes()
    assert found["train"]["label"][:] == folder.labels


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_webdataset_reads_them(own_pets: Path, tmp_path: Path) -> None:
    import webdataset

    done = shard(own_pets, tmp_path / "out", "tar")
    files = [str(tmp_path / "out" / s.file) for s in done.splits["train"]]
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
    assert len(samples) == 12
    assert {(s["json"]["class"], s["cls"]) for s in samples} == {("ant", 0), ("bee", 1), ("cat", 2)}
    folder = ImageFolder(own_pets, "train")
    names = [path.relative_to(folder.folder).as_posix() for path in folder.paths]
    expected = folder.image(names.index(samples[0]["json"]["path"]))
    assert samples[0]["png"].tobytes() == expected.tobytes()
    gc.collect()  # what it left open is complained of here, not in another test


def test_tar_files_are_not_sorted_by_class(own_pets: Path, tmp_path: Path) -> None:
    shard(own_pets, tmp_path / "out", "tar")
    labels = list(open_split(tmp_path / "out", "train").labels)
    assert sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4 != labels


def test_existing_files_are_not_overwritten(own_pets: Path, tmp_path: Path) -> None:
    shard(own_pets, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match=r"out: holds shards\.json and 2 more: choose a new or empty"):
        shard(own_pets, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    with pytest.raises(OutputError, match="is a file"):
        shard(own_pets, tmp_path / "out/shards.json")


def test_a_bad_image_is_an_error_before_anything_is_written(own_pets: Path, tmp_path: Path) -> None:
    (own_pets / "train/bee/2.png").write_bytes(b"junk")
    with pytest.raises(BadImage, match=r"train/bee/2\.png"):
        shard(own_pets, tmp_path / "out")
    (own_pets / "train/cat/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"bee/2\.png: .*; 1 more like it: `metaformer data check` lists"):
        shard(own_pets, tmp_path / "out")
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read, more than 0\.1%"):
        shard(own_pets, tmp_path / "out", on_bad_image="skip")
    assert not (tmp_path / "out").exists()


def test_a_few_bad_images_can_be_left_out(
    own_pets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(1000):
        shutil.copy(own_pets / "train/ant/0.png", own_pets / f"train/ant/more{i}.png")
    (own_pets / "train/bee/2.png").write_bytes(b"junk")
    done = shard(own_pets, tmp_path / "out", splits=["train"], on_bad_image="skip")
    assert [line.partition(": ")[0] for line in done.dropped["train"]] == ["bee/2.png"]
    assert (
        "bee/2.png: left out" in caplog.text and "1011 images" in done.text() and "1 left out" in done.text()
    )
    assert json.loads((tmp_path / "out" / INDEX).read_text())["dropped"] == done.dropped
    source = open_split(tmp_path / "out", "train")
    assert len(source) == 1011 and not any("bee/2.png" in str(path) for path in source.paths)


def test_a_full_disk_leaves_nothing_behind(
    own_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        if len(list((tmp_path / "out").rglob("*.parquet"))) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        shard(own_pets, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="No space left"):
        shard(own_pets, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_values_out_of_range(own_pets: Path, tmp_path: Path) -> None:
    for options in ({"kind": "zip"}, {"on_bad_image": "ignore"}, {"splits": []}):
        with pytest.raises(ConfigError, match="choose parquet or tar"):
            shard(own_pets, tmp_path / "out", **options)
    for size in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="shard_size is"):
            write_shards(own_pets, tmp_path / "out", shard_size=size)
    with pytest.raises(ConfigError, match="lies in the image folder itself"):
        shard(own_pets, own_pets / "shards")
    with pytest.raises(ConfigError, match="copy them with your storage's own tool"):
        write_shards(own_pets, "s3://bucket/out")
    (own_pets / "val/dog").mkdir()
    shutil.copy(own_pets / "val/ant/0.png", own_pets / "val/dog/0.png")
    with pytest.raises(DataError, match="'dog' not among"):
        shard(own_pets, tmp_path / "out")


def test_names_are_utf8(own_pets: Path, tmp_path: Path) -> None:
    shutil.move(own_pets / "train/ant/0.png", own_pets / "train/ant/Ämeise 1.v2.PNG")
    for kind in FORMATS:
        shard(own_pets, tmp_path / kind, kind)
        source = open_split(tmp_path / kind, "train")
        names = {str(source.path(i)).rpartition(": ")[2] for i in range(len(source))}
        assert "ant/Ämeise 1.v2.PNG" in names
        heights = sorted(source.image(i).height for i in range(len(source)))
        assert heights == [40] * 3 + [43] * 3 + [46] * 3 + [49] * 3
    shutil.move(own_pets / "train/ant/1.png", os.fsencode(own_pets / "train/ant") + b"/\xff.png")
    with pytest.raises(DataError, match=r"ant/\\xff.png: the name is not UTF-8: rename it"):
        shard(own_pets, tmp_path / "out")
