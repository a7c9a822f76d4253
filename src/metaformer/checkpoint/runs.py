"""Status of the runs in a folder."""

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from metaformer.checkpoint.checkpoint import read_state
from metaformer.checkpoint.manifest import verify
from metaformer.checkpoint.run_dir import LOG, RunDir
from metaformer.errors import ConfigError, OutputError, VersionError, WeightsError
from metaformer.serialize import decode, parse_json
from metaformer.storage import as_path, open_regular, read_json
from metaformer.weights.saved import checkpoints

DEPTH: Final = 4
"""Levels of folders that are searched for runs."""
_TAIL: Final = 1 << 14
State = Literal["running", "complete", "stopped", "damaged", "other version"]


@dataclass(frozen=True)
class RunStatus:
    """Status of a run, read from its files."""

    path: str
    state: State
    model: str = "?"
    mixers: str | None = None
    """Its token mixers, where the run names them: one, or one for each stage."""
    seed: int | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    """None for a run that counts steps."""
    step: int = 0
    """Steps done: of a stopped run, those of its newest checkpoint that is not damaged."""
    total: int | None = None
    metric: str | None = None
    best: float | None = None
    best_step: int | None = None
    updated: float = 0.0
    """Time of the last change, in seconds since 1970."""
    resume: str | None = None
    """The shell command that resumes it; None if there is nothing to resume."""
    notes: tuple[str, ...] = ()
    """What is damaged, or of another version."""

    @property
    def age(self) -> str:
        """Time since the last change, in the largest unit."""
        seconds_ago = max(time.time() - self.updated, 0.0)
        for name, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds_ago >= seconds:
                return f"{seconds_ago / seconds:.0f} {name}"
        return f"{seconds_ago:.0f} s"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def find_runs(folder: str | Path, *, contents: bool = False) -> list[RunStatus]:
    """Status of the runs in a folder, or of the run that it is; the one last written comes first.

    Args:
        folder: where to search.
        contents: verify checkpoints by reading them, not only by their files' sizes.

    Raises:
        OutputError: no such folder.
    """
    folder = as_path(folder, "folder", OutputError)
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder")
    runs = [_status(RunDir(path), contents) for path in _search(folder, DEPTH)]
    return sorted(runs, key=lambda run: (-run.updated, run.path))


def _search(folder: Path, depth: int) -> Iterator[Path]:
    run = RunDir(folder)
    if run.config.is_file() and (run.checkpoints.is_dir() or (folder / LOG).is_file()):
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
    except OSError:  # no permission
        return []


def _status(run: RunDir, contents: bool) -> RunStatus:
    """Status of a run; a folder with foreign files is damaged, so that it does not hide the others."""
    steps = checkpoints(run.checkpoints)
    try:
        return _known_status(run, steps, contents)
    except VersionError as error:
        return RunStatus(str(run.path), "other version", updated=_updated(run, steps), notes=(str(error),))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        note = f"{run.path}: its files are not those of a run ({type(error).__name__}: {error})"
        return RunStatus(str(run.path), "damaged", notes=(note,))


def _known_status(run: RunDir, steps: list[Path], contents: bool) -> RunStatus:
    notes: list[str] = []
    saved = next((saved for path in steps if (saved := _read_state(path, contents, notes))), {})
    if run.best.is_dir():
        _read_state(run.best, contents, notes)  # for its note: training resumes without it
    step, total = saved.get("step", 0), saved.get("total")
    best = saved.get("best") or {}
    complete = bool(saved) and not saved.get("evaluation_pending") and total is not None and step >= total
    state: State = "complete" if complete else "damaged" if steps and not saved else "stopped"
    if run.running:
        state, step = "running", max(step, _last_step(run.path))
    return RunStatus(
        path=str(run.path),
        state=state,
        **_settings(_read(run.config)),
        step=step,
        total=total,
        metric=saved.get("metric"),
        best=best.get("value"),
        best_step=best.get("step"),
        updated=_updated(run, steps),
        resume=_resume_command(run) if state == "stopped" else None,
        notes=tuple(notes),
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of network, seed and budget."""
    sections = {"model": {}, "optim": {}, "schedule": {}, **config}
    model, schedule = sections["model"], sections["schedule"]
    mixers = model.get("mixers") or ()
    names = [mixers] if isinstance(mixers, str) else [str(mixer) for mixer in mixers]
    shown = names[:1] if len(set(names)) == 1 else names
    return {
        "model": str(model.get("name", "?")),
        "mixers": ", ".join(shown) or None,
        "seed": config.get("seed"),
        "learning_rate": sections["optim"].get("lr"),
        "epochs": schedule.get("epochs") if schedule.get("steps") is None else None,
    }


def _read_state(directory: Path, contents: bool, notes: list[str]) -> dict[str, Any]:
    """A checkpoint's plain values; empty, with a note, if it is damaged.

    Raises:
        VersionError: it is in the format of another version.
    """
    try:
        verify(directory, contents=contents)
        return read_state(directory)
    except VersionError:
        raise
    except WeightsError as error:
        notes.append(str(error))
        return {}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file, WeightsError)
    except WeightsError:
        return {}
    return values if isinstance(values, dict) else {}


def _last_step(run: Path) -> int:
    """The step of the log's last line; lines are written more often than checkpoints."""
    try:
        with open_regular(run / LOG, WeightsError) as stream:
            stream.seek(-min(_TAIL, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = stream.read().decode(errors="replace").splitlines()
    except WeightsError:
        return 0
    for line in reversed(lines):
        try:
            step: int = decode(int, parse_json(line, LOG, WeightsError)["step"], "step")
            return step
        except (WeightsError, ConfigError, KeyError, TypeError):
            continue  # half a line: it is being written, or the tail starts in it
    return 0


def _updated(run: RunDir, steps: list[Path]) -> float:
    files = [run.config, run.path / LOG, *steps[:1]]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _resume_command(run: RunDir) -> str:
    """The command that started the run, or of one started in Python, its settings for the command line."""
    command = ["metaformer", "train", "finetune", str(run.config), "--out", str(run.path), "--resume", "auto"]
    return run.command or shlex.join(command)
