"""The directory of a run: what lies where, and whether it may be written."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaformer.engine.checkpoint import Saved, checkpoints, newest, read_checkpoint, recover_all
from metaformer.engine.manifest import recover
from metaformer.engine.whole_file import whole_file
from metaformer.errors import OutputError, WeightsError

CONFIG = "config.json"


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
        """The best weights so far: a checkpoint without optimiser."""
        return self.path / "best"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    def open(self, resume: str | None, say: Callable[[str], None]) -> Saved | None:
        """Make the directory, or find the checkpoint from which its run goes on.

        Args:
            resume: None for a new run; `auto` for the newest checkpoint that is whole, or a new run if
                there is none yet; else a checkpoint directory, which is taken or refused.
            say: told of each damaged checkpoint that `auto` passes over.

        Raises:
            OutputError: the directory holds a run and `resume` is None, or it cannot be written to.
            WeightsError: the checkpoint that was named is missing or damaged; or, with `auto`, all are.
        """
        self._make()
        if resume is None:
            if self.config.exists() or checkpoints(self.checkpoints):
                raise OutputError(f"{self.path}: holds a run already: choose another place, or --resume auto")
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
        with whole_file(self.config) as stream:
            stream.write(text)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot make this folder ({error.strerror})") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise OutputError(f"{self.path}: no permission to write here")
        steps = self.checkpoints
        if steps.exists() and not (steps.is_dir() and os.access(steps, os.R_OK | os.W_OK | os.X_OK)):
            # what cannot be listed would look like a run without checkpoints, and begin anew
            raise OutputError(f"{steps}: is no folder that may be read and written")


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
