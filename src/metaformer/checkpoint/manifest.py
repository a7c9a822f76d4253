"""Atomic directories: a sha256 manifest is written last, then the directory is renamed into place."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from metaformer.distributed import all_gather_object, raise_on_all_ranks, rank
from metaformer.errors import OutputError, WeightsError
from metaformer.serialize import NATURAL, decode, errors_at, parse_json
from metaformer.storage import TEMPORARY, apply_umask, open_regular, read_bytes, sync

MANIFEST = "manifest.json"
OLD = ".old-"
READ = (".json", ".safetensors")
"""Suffixes of the files that are read from a checkpoint; each must be in the manifest."""
PATIENCE = 60.0
"""Seconds until all machines see what one has written on a shared disk."""


@dataclass(frozen=True)
class _Entry:
    """A file in the manifest."""

    bytes: Annotated[int, NATURAL]
    sha256: str


def write_directory(target: Path, fill: Callable[[Path], None], together: bool = False) -> Path:
    """Write a directory atomically.

    The files are written beside the target and synchronized to the disk before the rename, so that a
    process or machine that dies leaves the old directory or the new one.

    Args:
        target: the directory.
        fill: writes files into the directory that it is given, and into folders of that.
        together: all ranks call this and fill one directory; the first does the rest.

    Raises:
        OutputError: it cannot be written; what was there before is untouched.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    first = not together or rank() == 0

    def attempt(action: Callable[[Path], None], mine: bool = True) -> None:
        failure: Exception | None = None
        try:
            if mine:
                action(temporary)
        except OSError as error:
            failure = OutputError(_explain(target, error, _size(temporary)))
            failure.__cause__ = error
        except Exception as error:
            failure = error
        if together:
            raise_on_all_ranks(failure)
        elif failure is not None:
            raise failure

    try:
        attempt(_create, first)
        attempt(fill)
        if together:
            attempt(_wait_for_files)
        attempt(lambda directory: _publish(directory, target), first)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def recover(target: Path) -> None:
    """Complete a replacement that was interrupted between its two renames."""
    old = target.with_name(f"{OLD}{target.name}")
    if old.is_dir() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(target.with_name(f"{TEMPORARY}{target.name}"), ignore_errors=True)


def verify(directory: Path, *, contents: bool = True) -> None:
    """Compare every file with the manifest.

    Args:
        directory: the checkpoint.
        contents: read the files; without it only their sizes are compared, which is quick.

    Raises:
        WeightsError: a file is missing, changed, or was not written; the message names it.
    """
    expected, present = _read_manifest(directory), _files(directory)
    for name, (size, digest) in expected.items():
        file = directory / name
        if name not in present:  # the system is not asked: it refuses some names, such as long ones
            raise WeightsError(f"{file}: missing, though the checkpoint's manifest lists it")
        if file.stat().st_size != size:
            raise WeightsError(f"{file}: damaged, {file.stat().st_size} bytes instead of {size}")
        if contents and _digest(file) != digest:
            raise WeightsError(f"{file}: damaged, its sha256 is not the manifest's")
    for name in present:
        if name != MANIFEST and name not in expected and name.endswith(READ):
            raise WeightsError(f"{directory / name}: is no part of this checkpoint; remove it")


def remove_directory(directory: Path) -> None:
    """Remove a directory; after a rename, so that it is never half removed."""
    temporary = directory.with_name(f"{TEMPORARY}{directory.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    directory.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _create(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()


def _wait_for_files(temporary: Path) -> None:
    """Wait until the first rank sees what all have written."""
    wanted = {name for names in all_gather_object(_files(temporary)) for name in names}
    deadline = time.monotonic() + PATIENCE
    while rank() == 0 and not wanted <= set(_files(temporary)):
        if time.monotonic() > deadline:
            raise OSError("other machines write elsewhere: the folder must be on a disk that all share")
        time.sleep(0.2)


def _publish(temporary: Path, target: Path) -> None:
    for name in _files(temporary):
        apply_umask(temporary / name)
    _write_manifest(temporary)
    for folder in _folders(temporary):
        sync(folder)
    old = target.with_name(f"{OLD}{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    temporary.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_manifest(directory: Path) -> None:
    files = {}
    for name in _files(directory):
        sync(directory / name)
        files[name] = ((directory / name).stat().st_size, _digest(directory / name))
    manifest = directory / MANIFEST
    manifest.write_text(_manifest_text(files), encoding="utf-8")
    sync(manifest)


def _manifest_text(files: Mapping[str, tuple[int, str]]) -> str:
    entries = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
    return json.dumps({"files": entries}, indent=1) + "\n"


def _read_manifest(directory: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of each file by its relative path."""
    file = directory / MANIFEST
    if not file.exists():
        raise WeightsError(f"{directory}: no checkpoint, or an unfinished one ({MANIFEST} is missing)")
    text = read_bytes(file, WeightsError)
    document = parse_json(text, f"{file}: damaged", WeightsError)
    with errors_at(f"{file}: damaged", WeightsError):
        listed = decode(
            dict[str, _Entry], document.get("files") if isinstance(document, dict) else None, "files"
        )
    expected = {name: (entry.bytes, entry.sha256) for name, entry in listed.items()}
    if text != _manifest_text(expected).encode():
        raise WeightsError(f"{directory / MANIFEST}: damaged (not as it was written)")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in expected):
        raise WeightsError(f"{directory / MANIFEST}: damaged (it names files outside of the checkpoint)")
    return expected


def _files(directory: Path) -> list[str]:
    """Relative paths of all files in a directory and its folders."""
    return sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())


def _folders(directory: Path) -> list[Path]:
    return [directory, *(folder for folder in directory.rglob("*") if folder.is_dir())]


def _size(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in _files(directory)) if directory.is_dir() else 0


def _digest(file: Path) -> str:
    with open_regular(file, WeightsError) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _explain(target: Path, error: OSError, needed: int) -> str:
    reason = error.strerror or str(error)
    folder = target.parent if target.parent.is_dir() else target.parent.parent
    free = f", {shutil.disk_usage(folder).free:,} bytes are free" if folder.is_dir() else ""
    return (
        f"{target}: cannot write ({reason}) after {needed:,} bytes{free}; earlier checkpoints are untouched"
    )
