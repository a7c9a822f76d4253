import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metaformer.checkpoint.manifest import (
    MANIFEST,
    OLD,
    recover,
    remove_directory,
    verify,
    write_directory,
)
from metaformer.distributed import join
from metaformer.errors import MetaFormerError, OutputError, WeightsError
from metaformer.storage import TEMPORARY


def fill(directory: Path) -> None:
    (directory / "a.bin").write_bytes(bytes(range(64)))
    (directory / "b.txt").write_text("b")


def test_what_was_written_verifies_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "x" / "whole", fill)
    verify(target)
    assert {file.name for file in target.iterdir()} == {"a.bin", "b.txt", MANIFEST}
    assert [file.name for file in target.parent.iterdir()] == ["whole"]


def test_folders_are_part_of_it(tmp_path: Path) -> None:
    def fill_folder(directory: Path) -> None:
        (directory / "model").mkdir()
        fill(directory / "model")

    target = write_directory(tmp_path / "whole", fill_folder)
    files = json.loads((target / MANIFEST).read_text())["files"]
    assert files.keys() == {"model/a.bin", "model/b.txt"}
    verify(target)
    (target / "model" / "a.bin").write_bytes(bytes(64))
    with pytest.raises(WeightsError, match=r"model/a\.bin: damaged"):
        verify(target)


@pytest.mark.parametrize("name", ["x.safetensors", "state.json", "model/x.safetensors"])
def test_a_file_that_was_not_written_is_not_taken(tmp_path: Path, name: str) -> None:
    target = write_directory(tmp_path / "whole", fill)
    (target / "notes.txt").touch()  # a user's own
    verify(target)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).touch()
    with pytest.raises(WeightsError, match="is no part of this checkpoint"):
        verify(target)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"files": {"a.bin": {"bytes": 1e999, "sha256": ""}}}',
        '{"files": {"../other": {"bytes": 0, "sha256": ""}}}',
        json.dumps({"files": {"../other": {"bytes": 0, "sha256": ""}}}, indent=1) + "\n",
        '{"files": []}',
        "{}",
        "",
        "\xff",
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    target = write_directory(tmp_path / "whole", fill)
    (target / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"manifest\.json: damaged"):
        verify(target)


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    for file in ("a.bin", MANIFEST):
        good = (target / file).read_bytes()
        for place in [*range(0, len(good), 3), len(good) - 1]:
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


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    write_directory(target, lambda directory: (directory / "c").touch())
    verify(target)
    assert {file.name for file in target.iterdir()} == {"c", MANIFEST}


def test_a_replacement_interrupted_between_its_renames_is_undone(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    target.rename(tmp_path / f"{OLD}whole")
    (tmp_path / f"{TEMPORARY}whole").mkdir()
    recover(target)
    verify(target)
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]


def test_a_removal_leaves_nothing(tmp_path: Path) -> None:
    remove_directory(write_directory(tmp_path / "whole", fill))
    assert not list(tmp_path.iterdir())


def test_the_manifest_has_sizes_and_digests(tmp_path: Path) -> None:
    files = json.loads((write_directory(tmp_path / "whole", fill) / MANIFEST).read_text())["files"]
    assert files["a.bin"]["bytes"] == 64 and len(files["a.bin"]["sha256"]) == 64


def write_together(folder: str) -> None:
    from metaformer.checkpoint import manifest

    rank = join("cpu").rank
    target = Path(folder) / "whole"

    def part(directory: Path) -> None:
        (directory / "parts").mkdir(exist_ok=True)
        (directory / "parts" / f"{rank}.bin").write_bytes(bytes([rank]))

    write_directory(target, part, together=True)
    verify(target)
    assert sorted(file.name for file in (target / "parts").iterdir()) == ["0.bin", "1.bin"]

    def broken(directory: Path) -> None:
        part(directory)
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    expected = r"whole: cannot write \(No space left on device\)"
    with pytest.raises(MetaFormerError, match=expected if rank else f"rank 1: .*{expected}"):
        write_directory(target, broken, together=True)
    verify(target)

    # machines that do not share a disk: each has a folder of its own
    manifest.PATIENCE = 0.5
    own = Path(folder) / f"machine_{rank}" / "whole"

    def elsewhere(directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        part(directory)

    with pytest.raises(MetaFormerError, match="on a disk that all share"):
        write_directory(own, elsewhere, together=True)
    assert not list(own.parent.iterdir())


def test_ranks_write_one_directory_or_none(tmp_path: Path, two_ranks: Callable[..., list[str]]) -> None:
    two_ranks(write_together, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "machine_0", "machine_1"}
