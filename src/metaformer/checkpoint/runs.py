"""Runs found in a folder: what became of each, how good it is, and how to go on with it."""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from metaformer.checkpoint.checkpoint import checkpoints, read_state
from metaformer.checkpoint.manifest import verify
from metaformer.checkpoint.run_dir import FILE, RunDir
from metaformer.errors import OutputError, VersionError, WeightsError

DEPTH: Final = 4
"""Folders below the one that is named in which runs are looked for."""
_TAIL: Final = 1 << 14
State = Literal["running", "complete", "stopped", "damaged", "other version"]


@dataclass(frozen=True)
class RunStatus:
    """A run from outside."""

    path: str
    model: str
    state: State
    step: int
    """Steps done: of a run that has stopped, those that its newest whole checkpoint holds."""
    total: int | None
    metric: str | None
    best: float | None
    best_step: int | None
    updated: float
    """When something was last written, in seconds since 1970."""
    resume: str | None
    """The shell's line that goes on with it; None where there is nothing to go on with."""
    notes: tuple[str, ...] = ()
    """What is damaged, or of another version."""

    @property
    def age(self) -> str:
        """How long nothing was written, in the largest unit."""
        passed = max(time.time() - self.updated, 0.0)
        for name, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
            if passed >= seconds:
                return f"{passed / seconds:.0f} {name}"
        return f"{passed:.0f} s"

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


def find_runs(folder: str | Path, *, contents: bool = False) -> list[RunStatus]:
    """Look at the runs in a folder, or at the run that it is; the one last written to comes first.

    Args:
        folder: where to look.
        contents: verify checkpoints by reading them, not only by their files' sizes.

    Raises:
        OutputError: no such folder.
    """
    place = Path(folder)
    if not place.is_dir():
        raise OutputError(f"{place}: no such folder")
    found = [_look_or_tell(RunDir(path), contents) for path in _search(place, DEPTH)]
    return sorted(found, key=lambda run: (-run.updated, run.path))


def _search(folder: Path, depth: int) -> Iterator[Path]:
    run = RunDir(folder)
    if run.config.is_file() and (run.checkpoints.is_dir() or (folder / FILE).is_file()):
        yield folder
        return
    if depth:
        for below in sorted(_folders(folder)):
            yield from _search(below, depth - 1)


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:  # not ours to look into
        return []


def _look_or_tell(run: RunDir, contents: bool) -> RunStatus:
    """One strange folder does not hide the others."""
    try:
        return _look(run, contents)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        why = f"{run.path}: its files are none of a run's ({type(error).__name__}: {error})"
        return _unread(run, "damaged", why)


def _unread(run: RunDir, state: State, why: str, updated: float = 0.0) -> RunStatus:
    return RunStatus(str(run.path), "?", state, 0, None, None, None, None, updated, None, (why,))


def _look(run: RunDir, contents: bool) -> RunStatus:
    notes: list[str] = []
    steps = checkpoints(run.checkpoints)
    try:
        state = next((state for path in steps if (state := _state(path, contents, notes.append))), {})
        if run.best.is_dir():
            _state(run.best, contents, notes.append)  # for its note: training goes on without
    except VersionError as error:
        return _unread(run, "other version", str(error), _updated(run, steps))
    config = _read(run.config)
    step, total = state.get("step", 0), state.get("total")
    best = state.get("best") or {}
    complete = bool(state) and not state.get("evaluation_pending") and total is not None and step >= total
    kind: State = "complete" if complete else "stopped"
    if steps and not state:
        kind = "damaged"
    if run.running:
        kind, step = "running", max(step, _last_step(run.path))
    return RunStatus(
        path=str(run.path),
        model=str(config.get("model", {}).get("name", "?")),
        state=kind,
        step=step,
        total=total,
        metric=state.get("metric"),
        best=best.get("value"),
        best_step=best.get("step"),
        updated=_updated(run, steps),
        resume=_resume(run) if kind == "stopped" else None,
        notes=tuple(notes),
    )


def _state(directory: Path, contents: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """What a checkpoint says of its run; nothing where it is damaged."""
    try:
        verify(directory, contents=contents)
        return read_state(directory)
    except VersionError:
        raise
    except WeightsError as error:
        tell(str(error))
        return {}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _last_step(run: Path) -> int:
    """The step of the last line of the log; a training's figures come more often than checkpoints."""
    try:
        with (run / FILE).open("rb") as stream:
            stream.seek(-min(_TAIL, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # half a line: it is being written, or the tail begins in it
    return 0


def _updated(run: RunDir, steps: list[Path]) -> float:
    files = [run.config, run.path / FILE, *steps[:1]]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _resume(run: RunDir) -> str:
    """The line the run was begun with; of one that was begun in Python, its settings for the command line."""
    words = ["metaformer", "train", "finetune", str(run.config), "--out", str(run.path), "--resume", "auto"]
    return run.command or shlex.join(words)
