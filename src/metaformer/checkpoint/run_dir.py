"""Directory of a training run: its files, its lock, and the checkpoint to resume from."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from metaformer.checkpoint.checkpoint import (
    Checkpoint,
    Natural,
    newest,
    read_checkpoint,
    recover_all,
)
from metaformer.checkpoint.manifest import recover
from metaformer.errors import OutputError, WeightsError
from metaformer.serialize import NUMBER, Fields, Text, parse_json
from metaformer.storage import TEMPORARY, is_held, lock, read_bytes, write_text
from metaformer.weights.saved import BEST, STEPS, checkpoints

CONFIG, COMMAND, LOCK, LOG = "config.json", "command.txt", ".lock", "metrics.jsonl"
_LINE: Final = {"kind": Text, "note": str, "step": Natural, "epoch": Natural}
_LARGEST_LOG: Final = 4 << 30
"""Bytes of a log that are read."""


@dataclass(frozen=True)
class RunDir:
    """Files of a training run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / STEPS

    @property
    def best(self) -> Path:
        """The best weights: a checkpoint without optimizer."""
        return self.path / BEST

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    def check(self, resume: str | None) -> None:
        """Check, without creating anything, that a run may start here.

        Raises:
            OutputError: the directory holds a run and `resume` is None, or cannot be written.
            WeightsError: the named checkpoint is missing.
        """
        if resume is None and (self.config.exists() or checkpoints(self.checkpoints)):
            raise OutputError(f"{self.path}: holds a run already: choose another directory, or --resume auto")
        if resume not in (None, "auto") and not Path(str(resume)).is_dir():
            raise WeightsError(f"{resume}: no such checkpoint directory")
        parents = (self.path, *self.path.absolute().parents)
        existing = next(folder for folder in parents if os.path.lexists(folder))
        if not existing.is_dir():
            raise OutputError(f"{self.path}: cannot create this folder ({existing} is no folder)")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"{existing}: no permission to write here")
        steps = self.checkpoints
        if os.path.lexists(steps) and not (steps.is_dir() and os.access(steps, os.R_OK | os.W_OK | os.X_OK)):
            # what cannot be listed would be taken for a run without checkpoints, and started anew
            raise OutputError(f"{steps}: is no folder that may be read and written")

    @contextmanager
    def writing(self, patience: float | None = None) -> Iterator[None]:
        """Create the directory and lock it, so that no two processes write the same run.

        Args:
            patience: seconds to wait for another process to end.

        Raises:
            OutputError: another process writes this run, or the directory cannot be created.
        """
        with lock(self.path / LOCK, str(self.path), patience):
            for leftover in self.path.glob(f"{TEMPORARY}*"):  # of a process that was killed
                if leftover.is_file():
                    leftover.unlink()
            yield

    @property
    def started(self) -> bool:
        """Whether a run has started here."""
        return (self.path / LOCK).exists()

    @property
    def running(self) -> bool:
        """Whether some process is writing this run."""
        return is_held(self.path / LOCK)

    @property
    def command(self) -> str | None:
        """The shell command that resumes this run, if it is known."""
        file = self.path / COMMAND
        return read_bytes(file, WeightsError).decode(errors="replace").strip() if file.is_file() else None

    def write_command(self, line: str) -> None:
        """Save the shell command that resumes this run."""
        write_text(self.path / COMMAND, f"{line}\n")

    def resumes(self, resume: str | None) -> bool:
        """Whether `open` gives a checkpoint, or raises."""
        return resume is not None and (resume != "auto" or bool(checkpoints(self.checkpoints)))

    def open(self, resume: str | None, say: Callable[[str], None]) -> Checkpoint | None:
        """Open the checkpoint to resume from, if any.

        Args:
            resume: None for a new run; `auto` for the newest undamaged checkpoint, or a new run if
                there is none yet; else a checkpoint directory, which is used or refused.
            say: gets a line for each damaged checkpoint that `auto` skips.

        Raises:
            VersionError: the checkpoint is in the format of another version.
            WeightsError: the named checkpoint is missing or damaged; or, with `auto`, all are.
        """
        if resume is None:
            return None
        recover(self.best)
        if resume == "auto":
            checkpoint = newest(self.checkpoints, say)
            if checkpoint is None and checkpoints(self.checkpoints):
                raise WeightsError(
                    f"{self.checkpoints}: every checkpoint is damaged, so there is nothing to resume from: "
                    "restore one, or start anew in another directory"
                )
            return checkpoint
        recover_all(self.checkpoints)
        return read_checkpoint(Path(resume))

    def write_config(self, config: dict[str, Any]) -> None:
        """Save the resolved configuration."""
        write_text(self.config, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's log in order, without those that a resumed run repeated."""
    lines: list[dict[str, Any]] = []
    file = run / LOG
    texts = read_bytes(file, WeightsError, largest=_LARGEST_LOG).splitlines() if file.exists() else ()
    for number, text in enumerate(texts, start=1):
        where = f"{file}: line {number}"
        try:
            values = parse_json(text, where, WeightsError)
        except WeightsError:
            continue  # half a line of a killed process
        line = Fields.read(values, _LINE, where, WeightsError, Annotated[Any, NUMBER])
        if line["kind"] == "resume":
            lines = [earlier for earlier in lines if earlier["step"] <= line["step"]]
        lines.append(line)
    return lines
