import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from metaformer.errors import OutputError
from metaformer.storage import (
    FileNames,
    atomic_bytes,
    atomic_folder,
    atomic_path,
    atomic_text,
    cache_dir,
    check_writable,
    is_held,
    lock,
    write_text,
)

Writer = Callable[[Path], AbstractContextManager[Any]]
each_writer = pytest.mark.parametrize("writer", [atomic_text, atomic_bytes, atomic_path])


def write(target: Any) -> None:
    if isinstance(target, Path):
        target.write_text("new")
    else:
        target.write(b"new" if "b" in target.mode else "new")


@each_writer
def test_the_file_is_there_at_the_end_only(writer: Writer, tmp_path: Path) -> None:
    with writer(tmp_path / "folder" / "a") as target:
        write(target)
        assert not (tmp_path / "folder" / "a").exists()
    assert [(file.name, file.read_text()) for file in (tmp_path / "folder").iterdir()] == [("a", "new")]


@each_writer
@pytest.mark.parametrize(("error", "raised"), [(KeyError(), KeyError), (OSError(28, "full"), OutputError)])
def test_an_error_leaves_what_was_there(
    writer: Writer, error: Exception, raised: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(raised), writer(tmp_path / "a") as target:
        write(target)
        raise error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


@each_writer
def test_an_error_leaves_no_new_folder(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("there", "a/b/c"):
        with pytest.raises(KeyError), writer(tmp_path / folder / "d") as target:
            write(target)
            raise KeyError
        check_writable(tmp_path / folder / "d")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@each_writer
def test_two_writers_at_once_leave_one_whole_file(writer: Writer, tmp_path: Path) -> None:
    with writer(tmp_path / "a") as one:
        with writer(tmp_path / "a") as other:
            write(other)
        write(one)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "new")]


@each_writer
def test_what_cannot_be_written_is_named(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path):
        with pytest.raises(OutputError, match=str(path)), writer(path):
            pass
        with pytest.raises(OutputError, match=str(path)):
            check_writable(path)
    check_writable(tmp_path / "folder" / "a")
    assert not (tmp_path / "folder").exists()


def test_text_is_utf8_as_it_is_and_bytes_can_be_sought_in(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    with atomic_bytes(tmp_path / "b") as stream:
        stream.write(b"1234")
        stream.seek(0)
        stream.write(b"5")
    assert (tmp_path / "b").read_bytes() == b"5234"


HOLD = """
import sys, time
from pathlib import Path
from metaformer.storage import lock
with lock(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    assert not is_held(file) and not file.exists()
    with lock(file, "the run"):
        assert is_held(file)
        with pytest.raises(OutputError, match="the run: another process"), lock(file, "the run", patience=0):
            pass
    assert not is_held(file)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, file], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert is_held(file)
    with pytest.raises(OutputError, match="the run"), lock(file, "the run", patience=0.5):
        pass
    holder.kill()
    holder.communicate()
    assert not is_held(file)
    with lock(file, "the run", patience=0):
        os.chmod(file, 0o444)
        assert is_held(file)


def test_a_lock_that_cannot_be_made_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=str(tmp_path / "file")), lock(tmp_path / "file" / "x", "it"):
        pass


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("METAFORMER_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "metaformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "metaformer"
    monkeypatch.setenv("METAFORMER_HOME", "~no-user-of-this-name/cache")
    with pytest.raises(OutputError, match="no such home directory; set METAFORMER_HOME"):
        cache_dir()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "half.txt").write_text("")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    target.mkdir()  # an empty one is taken
    with atomic_folder(target) as folder:
        (folder / "whole.txt").write_text("")
    assert [path.name for path in target.iterdir()] == ["whole.txt"]
    with pytest.raises(OutputError, match="not empty"), atomic_folder(target):
        pytest.fail("it was entered")
    with pytest.raises(OutputError, match="cannot write"), atomic_folder(target / "whole.txt" / "below"):
        pytest.fail("it was entered")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_each_output_has_a_name_of_its_own() -> None:
    names = FileNames()
    given = [names.of(path) for path in ("a/x.jpg", "b/x.png", "x_2.png", "c/X.jpg", "", "")]
    assert given == ["x", "x_2", "x_2_2", "X_3", "image", "image_2"]
    assert names.unique("x") == "x_4"


def test_long_names_are_cut_and_told_apart(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    names, long = FileNames(), "猫" * 84  # 252 bytes
    found = [names.of(f"{long}.png"), names.of(f"{long[:-1]}狗.png")]
    assert len(set(found)) == 2 and all(name.startswith("猫" * 60) for name in found)
    assert all(len(f"{name}_000001.jsonl".encode()) < 255 for name in found)
    assert ["too long a name" in message for message in caplog.messages] == [True, True]
    for name in found:
        write_text(tmp_path / f"{name}.txt", "")
    assert names.of("x" * 200) == "x" * 200
