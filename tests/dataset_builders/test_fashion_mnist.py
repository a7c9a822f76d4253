"""Fashion-MNIST as an image folder, from small files in its format."""

import gzip
import hashlib
import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.cli import main
from metaformer.data.folder import ImageFolder
from metaformer.dataset_builders import fashion_mnist
from metaformer.dataset_builders.fashion_mnist import CLASSES, FILES, write_fashion_mnist
from metaformer.errors import DataError, DownloadError, OutputError

COUNTS = {"train": 240, "test": 20}
"""Images; 24 of each class to learn from, two of them for validation."""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the four files, small, whose hashes are taken for the published ones."""
    folder, random = tmp_path / "published", np.random.RandomState(0)
    folder.mkdir()
    for name, file in FILES.items():
        split, _, what = name.partition(" ")
        shape = (COUNTS[split], 28, 28) if what == "images" else (COUNTS[split],)
        values = random.randint(0, 256, shape) if what == "images" else np.arange(shape[0]) % 10
        content = (
            struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            + values.astype(np.uint8).tobytes()
        )
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(content))
        known = file._replace(sha256=hashlib.sha256(content).hexdigest(), shape=shape)
        monkeypatch.setitem(FILES, name, known)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    return folder


def test_an_image_folder_with_three_splits(published: Path, tmp_path: Path) -> None:
    done = write_fashion_mnist(tmp_path / "out", source=published, progress=False)
    assert {split: sum(found.values()) for split, found in done.counts.items()} == {
        "train": 220, "val": 20, "test": 20,
    }  # fmt: skip
    assert "220 images, 22 to 22 of each class" in done.text()
    raw = gzip.decompress((published / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    images = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)
    numbers: list[int] = []
    for split in ("train", "val"):
        folder = ImageFolder(tmp_path / "out", split)
        assert set(folder.classes) == set(CLASSES)
        for path in folder.paths:
            number = int(path.stem)
            numbers.append(number)
            assert path.parent.name == CLASSES[number % 10]
            with Image.open(path) as image:
                assert image.mode == "L" and np.array_equal(np.asarray(image), images[number])
    assert sorted(numbers) == list(range(240))
    assert "MIT" in (tmp_path / "out" / "README.txt").read_text()


def test_the_split_is_the_same_every_time(published: Path, tmp_path: Path) -> None:
    names = []
    for out in ("one", "other"):
        write_fashion_mnist(tmp_path / out, source=published, progress=False)
        names.append(sorted(path.name for path in (tmp_path / out / "val").rglob("*.png")))
    assert names[0] == names[1]
    assert [name[:5] for name in names[0][:3]] == SPLIT


SPLIT = ["00005", "00006", "00027"]
"""The first images for validation, on every machine."""


def test_files_may_be_unpacked(published: Path, tmp_path: Path) -> None:
    for path in published.iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert write_fashion_mnist(tmp_path / "out", source=published, progress=False).counts["test"]["bag"] == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def bits(file: Path) -> None:
    file.write_bytes(b"no gzip")


def other(file: Path) -> None:
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[-1] ^= 1
    file.write_bytes(gzip.compress(bytes(content)))


def bomb(file: Path) -> None:
    file.write_bytes(gzip.compress(bytes(20_000_000)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "truncated"),
        (bits, "no gzip"),
        (other, "SHA-256"),
        (bomb, "SHA-256"),
        (Path.unlink, "has neither"),
    ],
)
def test_a_bad_file_is_an_error_of_one_line(
    damage: Callable[[Path], object], said: str, published: Path, tmp_path: Path
) -> None:
    file = published / "t10k-images-idx3-ubyte.gz"
    damage(file)
    with pytest.raises(DataError, match=said) as caught:
        write_fashion_mnist(tmp_path / "out", source=published, progress=False)
    assert file.stem in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp*"))


def test_a_folder_with_something_in_it_is_left_alone(published: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not empty"):
        write_fashion_mnist(tmp_path / "out", source=published, progress=False)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Path]:
    """The published address serves the files of a folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = published / self.path.strip("/")
            content = file.read_bytes() if file.is_file() else b""
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(fashion_mnist, "ADDRESS", f"http://127.0.0.1:{http.server_port}")
        yield published
        http.shutdown()
        thread.join()


def test_files_are_downloaded_once(server: Path, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "one", progress=False)
    for file in server.iterdir():
        file.unlink()
    write_fashion_mnist(tmp_path / "other", progress=False)


def test_a_wrong_download_is_not_kept(server: Path, tmp_path: Path) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    right = (server / name).read_bytes()
    other(server / name)
    with pytest.raises(DownloadError, match="SHA-256"):
        write_fashion_mnist(tmp_path / "out", progress=False)
    (server / name).write_bytes(right)
    write_fashion_mnist(tmp_path / "out", progress=False)


def test_without_a_network_the_error_says_what_to_do(server: Path, tmp_path: Path) -> None:
    (server / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DownloadError, match="404") as caught:
        write_fashion_mnist(tmp_path / "out", progress=False)
    text = str(caught.value)
    assert "--from" in text and "dataset-fashion-mnist" in text and "checkpoint" not in text


def test_debians_folder_comes_before_a_download(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", published)
    assert sum(write_fashion_mnist(tmp_path / "out", progress=False).counts["test"].values()) == 20


def test_the_published_files_are_of_the_published_sizes() -> None:
    assert {file.name: file.size for file in FILES.values()} == {
        "train-images-idx3-ubyte": 47_040_016,
        "train-labels-idx1-ubyte": 60_008,
        "t10k-images-idx3-ubyte": 7_840_016,
        "t10k-labels-idx1-ubyte": 10_008,
    }
    assert all(len(file.sha256) == 64 for file in FILES.values())


def test_the_command(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "fashion-mnist", str(tmp_path / "out"), f"--from={published}"]
    assert main(command) == 0
    assert "val: 20 images, 2 to 2 of each class" in capsys.readouterr().out
    assert main(command) == 1
    assert "not empty" in capsys.readouterr().err
