import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metaformer.data.shards.index import find_shards
from metaformer.data.shards.tar import TarImages, TarShard, contents_name, read_tar, scan_tar
from metaformer.errors import BadImage, DataError
from toys import gray_png, write_tar


def opened(root: Path | str, split: str = "train", *args: object, **options: bool) -> TarImages:
    shards = find_shards(root, split)
    assert shards is not None and shards.kind == "tar"
    return TarImages(shards, *args, **options)


@pytest.fixture
def shards(shard_pets: Callable[[str], Path]) -> Path:
    return shard_pets("tar")


def test_a_stream_has_the_images_in_order(shards: Path, own_pets: Path) -> None:
    train = opened(shards)
    streamed = [image for file in range(len(train.shards.files)) for image in train.stream(file)]
    assert [image.index for image in streamed] == list(range(12))
    for image in streamed:
        name = image.name.rpartition(": ")[2]
        assert image.name == train.path(image.index) and image.label == train.labels[image.index]
        assert image.data == (own_pets / "train" / name).read_bytes()
    val = opened(shards, "val", ["cat", "ant", "bee"])
    assert [image.label for image in val.stream(0)] == list(val.labels)[: len(list(val.stream(0)))]


def test_files_without_index_and_contents_are_scanned(shards: Path) -> None:
    expected = opened(shards)
    for file in [shards / "shards.json", *shards.rglob("*.contents.json")]:
        file.unlink()
    found = opened(shards)
    assert found.classes == ("0", "1", "2") and list(found.labels) == list(expected.labels)
    assert [found.path(i) for i in range(12)] == [expected.path(i) for i in range(12)]
    assert found.image(5).tobytes() == expected.image(5).tobytes()
    (shards / "classes.txt").write_text("ant\nbee\ncat\n")
    assert opened(shards).classes == ("ant", "bee", "cat")


def test_contents_agree_with_the_file(shards: Path) -> None:
    train = opened(shards)
    for file, url in enumerate(train.shards.urls):
        assert scan_tar(url) == train._contents(file)


def test_files_of_other_writers_are_read(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train-0.tar",
        ("README", b"text"),
        ("a/one.v2.PNG", gray_png()),
        ("a/one.cls", b" 1\n"),
        ("a/one.json", b"[1]"),
        ("b/two.cls", b"0"),
        ("b/two.jpg", gray_png()),
    )
    train = opened(tmp_path)
    assert list(train.labels) == [1, 0] and train.path(0).endswith("train-0.tar: a/one.v2.PNG")
    assert train.image(0).size == train.image(1).size == (8, 8)
    assert [read.label for read in train.stream(0)] == [1, 0]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], r"a\.cls is missing or holds no number"),
        ([("a.png", b"x"), ("a.cls", b"ant")], r"a\.cls is missing or holds no number"),
        ([("a.txt", b"x"), ("a.cls", b"0")], "a holds no image that can be read, only txt, cls"),
        ([("README", b"x")], "no images"),
    ],
)
def test_tar_files_that_are_no_data_set(
    members: list[tuple[str, bytes]], message: str, tmp_path: Path
) -> None:
    write_tar(tmp_path / "train-0.tar", *members)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_numbers_without_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", ("a.png", gray_png()), ("a.cls", b"7"))
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match="class 7 has no name"):
        list(opened(tmp_path).labels)
    with pytest.raises(DataError, match="label 7 has no name"):
        opened(tmp_path, "train", ["ant", "bee"])


def test_bad_images_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", ("a.png", b"junk"), ("a.cls", b"0"), ("b.png", b""), ("b.cls", b"0"))
    train = opened(tmp_path)
    with pytest.raises(BadImage, match=r"train-0\.tar: a\.png: not a JPEG"):
        train.image(0)
    with pytest.raises(BadImage, match=r"train-0\.tar: b\.png: the file is empty"):
        train.image(1)


def test_compressed_tar_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", ("a.png", gray_png()), ("a.cls", b"0"), mode="w:gz")
    with pytest.raises(DataError, match=r"train-0\.tar: damaged, or no uncompressed tar file"):
        opened(tmp_path)


@pytest.mark.parametrize("length", [0, 100, 512, 700, 5000, -11000])
def test_damaged_files(length: int, shards: Path) -> None:
    """Cut anywhere: in a header, in an image, between members."""
    file = shards / "train/00001.tar"
    whole = opened(shards)
    data = file.read_bytes()
    file.write_bytes(data[:length])
    with pytest.raises(DataError, match=r"00001\.tar: \d+ bytes, shards\.json says"):
        opened(shards)
    with pytest.raises(DataError, match=r"00001\.tar: (damaged|holds \d+ images)"):
        list(whole.stream(1))
    Path(contents_name(str(file))).unlink()
    with pytest.raises(DataError, match=r"00001\.tar: (damaged|holds \d+ images|.* is missing)"):
        whole._contents(1)


@pytest.mark.parametrize("kind", [b"Z", b"V", b"\x80"])
def test_a_member_of_an_unknown_type_is_not_stepped_over(kind: bytes, tmp_path: Path) -> None:
    """Its header may claim any size, and a stream could only be read up to its end again and again."""
    entry = tarfile.TarInfo("a.png")
    entry.type, entry.size = kind, 1 << 40
    file = tmp_path / "train-0.tar"
    file.write_bytes(entry.tobuf() + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(DataError, match=r"train-0\.tar: 'a\.png' .*type"):
        list(read_tar(file))
    with pytest.raises(DataError, match=r"train-0\.tar: 'a\.png' .*type"):
        scan_tar(str(file))


def test_damaged_contents(shards: Path) -> None:
    contents = Path(contents_name(str(shards / "train/00000.tar")))
    text = contents.read_text()
    for damaged in ("{", "[[1]]", '[["a"],["b"],[0],[1]]', text[:-5]):
        contents.write_text(damaged)
        with pytest.raises(DataError, match=r"contents\.json: damaged|holds 1 images"):
            opened(shards).image(0)
        assert opened(shards).path(0).endswith("00000.tar: image 0")  # a name all the same


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    shard = TarShard(tmp_path / "x.tar", ["ant", "bee"], first=7)
    rows = [(i % 2, bytes([i]) * (500 + i)) for i in range(30)]
    for label, data in rows:
        shard.add(f"a/{label}.jpg", label, data)
    shard.close()
    assert list(read_tar(tmp_path / "x.tar")) == rows
    with tarfile.open(tmp_path / "x.tar") as found:
        assert found.getnames()[:3] == ["000000007.jpg", "000000007.cls", "000000007.json"]
    shutil.copy(tmp_path / "x.tar", tmp_path / "train-0.tar")
    data = (tmp_path / "x.tar").read_bytes()
    members = shard.members
    assert [data[m.offset : m.offset + m.size] for m in members] == [row[1] for row in rows]
