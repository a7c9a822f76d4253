"""Writing shards, their index, and remote places."""

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import fsspec
import pytest

from metaformer.data.folder import ImageFolder
from metaformer.data.shards.index import (
    FORMATS,
    INDEX,
    Shard,
    damaged_shards,
    find_shards,
    fingerprints,
    index_text,
    label_numbers,
)
from metaformer.data.shards.remote import is_remote, list_folder, open_file, read_bytes, size_and_version
from metaformer.data.shards.write import ShardReport, write_shards
from metaformer.data.split import open_split
from metaformer.errors import BadImage, ConfigError, DataError, MissingPackage, OutputError

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
    "text",
    [
        *("", "{", "[]", '{"format": 1}', "\x00\xff"),
        '{"format": "metaformer shards 1", "kind": "zip"}',
        '{"format": "metaformer shards 1", "kind": "tar", "classes": [], "splits": {"train": [{"a": 1}]}}',
    ],
)
def test_a_damaged_index(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"shards\.json: not an index of shards"):
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


@pytest.fixture(params=["path", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that holds `a/one.bin`, by path, by URL and in the memory of this process."""
    root = {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": "memory://listed"}[request.param]
    if request.param == "memory":
        with fsspec.open(f"{root}/a/one.bin", "wb") as stream:
            stream.write(b"0123456789")
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/one.bin").write_bytes(b"0123456789")
    yield root
    fsspec.filesystem("memory").store.clear()


def test_files_are_read_whole_and_in_part(url: str) -> None:
    assert is_remote(url) == ("://" in url)
    assert read_bytes(f"{url}/a/one.bin") == b"0123456789"
    assert read_bytes(f"{url}/a/one.bin", 2, 5) == b"234"
    assert read_bytes(f"{url}/a/one.bin", 7) == b"789"
    with open_file(f"{url}/a/one.bin") as stream:
        assert stream.read(3) == b"012" and stream.read() == b"3456789"
    size, version = size_and_version(f"{url}/a/one.bin")
    assert size == 10 and version


def test_folders_are_listed(url: str) -> None:
    assert list_folder(f"{url}/a") == ["one.bin"]
    assert list_folder(url) == ["a"]
    assert list_folder(f"{url}/none") == []


def test_missing_files(url: str) -> None:
    assert read_bytes(f"{url}/none", missing=b"") == b""
    for read in (read_bytes, size_and_version):
        with pytest.raises(DataError, match=r"none: (no such file|cannot be read)"):
            read(f"{url}/none")
    with pytest.raises(DataError, match="none: cannot be read"), open_file(f"{url}/none"):
        pass


@pytest.mark.parametrize("bad", ["nonsense://bucket/x", "pipe://touch canary", "pipe:touch canary"])
def test_unknown_urls_are_errors_and_run_nothing(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"pipe|nonsense"):
        read_bytes(bad)
    assert not list(tmp_path.iterdir())


def test_a_storage_whose_package_is_missing_names_it() -> None:
    if find_spec("s3fs") is not None:
        pytest.skip("s3fs is installed")
    with pytest.raises(MissingPackage, match=r"s3://bucket/x: .* pip install s3fs"):
        read_bytes("s3://bucket/x")


class ExpiredToken(Exception):
    """What a client of a storage raises: none of Python's own errors."""


class Expired(fsspec.AbstractFileSystem):
    """A file system that refuses everything."""

    protocol = "expired"

    def _refuse(self, *args: object, **options: object) -> NoReturn:
        raise ExpiredToken("The token is expired.\n  Log in again.")

    cat_file = ls = info = _open = _refuse


def test_whatever_a_storage_raises_is_one_line_with_its_url() -> None:
    fsspec.register_implementation("expired", Expired, clobber=True)
    url = "expired://bucket/x.tar"

    def opened(url: str) -> None:
        with open_file(url):
            pass

    for call in (read_bytes, list_folder, size_and_version, opened):
        with pytest.raises(DataError) as caught:
            call(url)
        assert str(caught.value) == f"{url}: cannot be read (The token is expired. Log in again.)"
    with pytest.raises(DataError, match="expired://bucket"):
        open_split("expired://bucket", "train")
