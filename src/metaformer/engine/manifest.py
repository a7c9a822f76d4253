"""A directory that is either whole or not there: sha256 manifest written last, then renamed into place."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from metaformer.errors import OutputError, WeightsError
from metaformer.weights.io import sync, unlock

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
OLD = ".old-"


def write_directory(target: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write files into a new directory, and put it in place of `target` at one stroke.

    The files are written beside the target and synchronised to the disk before the rename, so that a
    process or machine that dies leaves the old directory or the new one.

    Raises:
        OutputError: it could not be written; what was there before is untouched.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    old = target.with_name(f"{OLD}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        fill(temporary)
        for file in temporary.iterdir():
            unlock(file)
        _write_manifest(temporary)
        sync(temporary)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        temporary.rename(target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        needed = sum(file.stat().st_size for file in temporary.glob("*")) if temporary.is_dir() else 0
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(_explain(target, error, needed)) from error
    return target


def recover(target: Path) -> None:
    """Finish a replacement that was cut between its two renames."""
    old = target.with_name(f"{OLD}{target.name}")
    if old.is_dir() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(target.with_name(f"{TEMPORARY}{target.name}"), ignore_errors=True)


def verify(directory: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        WeightsError: a file is missing or is not what was written; the message names it.
    """
    try:
        listed = json.loads((directory / MANIFEST).read_text())["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in listed.items()}
    except FileNotFoundError:
        raise WeightsError(
            f"{directory}: no checkpoint, or an unfinished one ({MANIFEST} is missing)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{directory / MANIFEST}: damaged ({error})") from error
    for name, (size, digest) in expected.items():
        file = directory / name
        if not file.is_file():
            raise WeightsError(f"{file}: missing, though the checkpoint's manifest lists it")
        if file.stat().st_size != size:
            raise WeightsError(f"{file}: damaged, {file.stat().st_size} bytes instead of {size}")
        if _digest(file) != digest:
            raise WeightsError(f"{file}: damaged, its sha256 is not the manifest's")


def remove_directory(directory: Path) -> None:
    """Remove a directory so that it is never seen half removed."""
    doomed = directory.with_name(f"{TEMPORARY}{directory.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write_manifest(directory: Path) -> None:
    files = {}
    for file in sorted(directory.iterdir()):
        sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n")
    sync(manifest)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _explain(target: Path, error: OSError, needed: int) -> str:
    reason = error.strerror or str(error)
    place = target.parent if target.parent.is_dir() else target.parent.parent
    free = f", {shutil.disk_usage(place).free:,} bytes are free" if place.is_dir() else ""
    return (
        f"{target}: cannot write ({reason}) after {needed:,} bytes{free}; earlier checkpoints are untouched"
    )
