import errno
import json
from pathlib import Path

import pytest

from metaformer.engine.manifest import (
    MANIFEST,
    OLD,
    TEMPORARY,
    recover,
    remove_directory,
    verify,
    write_directory,
)
from metaformer.errors import OutputError, WeightsError


def fill(directory: Path) -> None:
    (directory / "a.bin").write_bytes(bytes(range(64)))
    (directory / "b.txt").write_text("b")


def test_what_was_written_verifies_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "x" / "whole", fill)
    verify(target)
    assert {file.name for file in target.iterdir()} == {"a.bin", "b.txt", MANIFEST}
    assert [file.name for file in target.parent.iterdir()] == ["whole"]


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    for file in ("a.bin", MANIFEST):
        good = (target / file).read_bytes()
        for place in range(0, len(good), 3):
            changed = bytearray(good)
            changed[place] ^= 1 << (place % 8)
            (target / file).write_bytes(changed)
            with pytest.raises(WeightsError, match=str(target)):
                verify(target)
            (target / file).write_bytes(good[:place])
            with pytest.raises(WeightsError, match=str(target)):
                verify(target)
        (target / file).write_bytes(good)
    verify(target)


def test_missing_files_are_found(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    (target / "b.txt").unlink()
    with pytest.raises(WeightsError, match=r"b\.txt: missing"):
        verify(target)
    (target / MANIFEST).unlink()
    with pytest.raises(WeightsError, match="unfinished"):
        verify(target)


def test_a_write_that_fails_leaves_the_old_directory(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)

    def full(directory: Path) -> None:
        (directory / "a.bin").write_bytes(b"123")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"whole: cannot write \(No space left on device\) after 3 bytes"):
        write_directory(target, full)
    verify(target)
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]


def test_a_replacement_takes_the_place_of_the_old(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    write_directory(target, lambda directory: (directory / "c").touch())
    verify(target)
    assert {file.name for file in target.iterdir()} == {"c", MANIFEST}


def test_a_replacement_cut_between_its_renames_is_taken_back(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    target.rename(tmp_path / f"{OLD}whole")
    (tmp_path / f"{TEMPORARY}whole").mkdir()
    recover(target)
    verify(target)
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]


def test_a_removal_leaves_nothing(tmp_path: Path) -> None:
    remove_directory(write_directory(tmp_path / "whole", fill))
    assert not list(tmp_path.iterdir())


def test_the_manifest_tells_sizes_and_digests(tmp_path: Path) -> None:
    files = json.loads((write_directory(tmp_path / "whole", fill) / MANIFEST).read_text())["files"]
    assert files["a.bin"]["bytes"] == 64 and len(files["a.bin"]["sha256"]) == 64
