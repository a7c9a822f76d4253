"""The directory of a run: what lies where, and whether it may be written."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaformer.checkpoint.checkpoint import Checkpoint, checkpoints, newest, read_checkpoint, recover_all
from metaformer.checkpoint.manifest import recover
from metaformer.errors import OutputError, WeightsError
from metaformer.storage import TEMPORARY, atomic_text, is_held, lock

CONFIG = "config.json"


COMMAND = "command.txt"


LOCK = ".lock"


@dataclass(frozen=True)
class RunDir:
    """Names of the files of a run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the step checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The best weights so far: a checkpoint without optimizer."""
        return self.path / "best"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    def check(self, resume: str | None) -> None:
        """Find out, without making anything, whether a run may begin here.

        Raises:
            OutputError: the directory holds a run and `resume` is None, or it could not be written to.
            WeightsError: the checkpoint that was named is not there.
        """
        if resume is None and (self.config.exists() or checkpoints(self.checkpoints)):
            raise OutputError(f"{self.path}: holds a run already: choose another place, or --resume auto")
        if resume not in (None, "auto") and not Path(str(resume)).is_dir():
            raise WeightsError(f"{resume}: no such checkpoint directory")
        there = next(place for place in (self.path, *self.path.absolute().parents) if os.path.lexists(place))
        if not there.is_dir():
            raise OutputError(f"{self.path}: cannot make this folder ({there} is no folder)")
        if not os.access(there, os.W_OK | os.X_OK):
            raise OutputError(f"{there}: no permission to write here")
        steps = self.checkpoints
        if os.path.lexists(steps) and not (steps.is_dir() and os.access(steps, os.R_OK | os.W_OK | os.X_OK)):
            # what cannot be listed would look like a run without checkpoints, and begin anew
            raise OutputError(f"{steps}: is no folder that may be read and written")

    @contextmanager
    def writing(self, patience: float | None = None) -> Iterator[None]:
        """Make the directory and keep it for this process, so that no two write the same run.

        Args:
            patience: seconds to wait for another process to end.

        Raises:
            OutputError: another process writes this run, or the directory cannot be made.
        """
        with lock(self.path / LOCK, str(self.path), patience):
            for leftover in self.path.glob(f"{TEMPORARY}*"):  # of a process that was killed
                if leftover.is_file():
                    leftover.unlink()
            yield

    @property
    def begun(self) -> bool:
        """Tell whether a run has begun here."""
        return (self.path / LOCK).exists()

    @property
    def running(self) -> bool:
        """Tell whether some process is writing this run."""
        return is_held(self.path / LOCK)

    @property
    def command(self) -> str | None:
        """The shell's line that goes on with this run, where it is known."""
        file = self.path / COMMAND
        return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None

    def write_command(self, line: str) -> None:
        """Save the shell's line that goes on with this run."""
        with atomic_text(self.path / COMMAND) as stream:
            stream.write(f"{line}\n")

    def open(self, resume: str | None, say: Callable[[str], None]) -> Checkpoint | None:
        """Find the checkpoint from which the run goes on, if it is to.

        Args:
            resume: None for a new run; `auto` for the newest checkpoint that is whole, or a new run if
                there is none yet; else a checkpoint directory, which is taken or refused.
            say: told of each damaged checkpoint that `auto` passes over.

        Raises:
            WeightsError: the checkpoint that was named is missing or damaged; or, with `auto`, all are.
        """
        if resume is None:
            return None
        recover(self.best)
        if resume == "auto":
            saved = newest(self.checkpoints, say)
            if saved is None and checkpoints(self.checkpoints):
                raise WeightsError(
                    f"{self.checkpoints}: no checkpoint is whole, so there is nothing to go on from: restore "
                    "one, or begin anew in another place"
                )
            return saved
        recover_all(self.checkpoints)
        return read_checkpoint(Path(resume))

    def write_config(self, config: dict[str, Any]) -> None:
        """Save the resolved configuration."""
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        with atomic_text(self.config) as stream:
            stream.write(text)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a path stands for: itself, or of a run its best, else its newest.

    Raises:
        OutputError: nothing there that can be loaded.
    """
    run = RunDir(source)
    if run.best.is_dir():
        return run.best
    steps = checkpoints(run.checkpoints)
    return steps[0] if steps else source


FILE = "metrics.jsonl"


def read_log(run: Path) -> list[dict[str, Any]]:
    """Lines of a run in order, without those that a resumed run took back and did again."""
    lines: list[dict[str, Any]] = []
    file = run / FILE
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # half a line, of a process that was killed as it wrote
        if line["kind"] == "resume":
            lines = [kept for kept in lines if kept["step"] <= line["step"]]
        lines.append(line)
    return lines
