from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from metaformer.data.shards.remote import is_remote, list_folder, open_file, read_bytes, size_and_version
from metaformer.errors import DataError


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
    with pytest.raises(DataError, match=r"s3://bucket/x: .*s3fs"):
        read_bytes("s3://bucket/x")
