from pathlib import Path

import pytest

from metaformer.errors import OutputError
from metaformer.storage import FileNames, whole_bytes, whole_file


def test_the_file_is_there_at_the_end_only(tmp_path: Path) -> None:
    with whole_file(tmp_path / "new" / "a.txt") as stream:
        stream.write("é\n")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "é\n"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_an_error_inside_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), whole_file(tmp_path / "a.txt") as stream:
        stream.write("new")
        raise KeyError
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"a\.txt: cannot write"), whole_file(tmp_path / "file" / "a.txt"):
        pass


def test_bytes_appear_whole_too(tmp_path: Path) -> None:
    with whole_bytes(tmp_path / "a.bin") as stream:
        stream.write(b"1234")
        stream.seek(0)
        stream.write(b"5")
        assert not (tmp_path / "a.bin").exists()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.bin", b"5234")]
    with pytest.raises(KeyError), whole_bytes(tmp_path / "a.bin") as stream:
        stream.write(b"new")
        raise KeyError
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.bin", b"5234")]


def test_file_names_are_unique_whatever_their_case() -> None:
    names = FileNames()
    paths = ("a/x.jpg", "b/x.png", "x_2.png", "c/X.jpg", "", "")
    assert [names.of(path) for path in paths] == ["x", "x_2", "x_2_2", "X_3", "image", "image_2"]
    assert names.unlike("x") == "x_4"
