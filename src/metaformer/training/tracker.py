"""Weights & Biases, for those who want their figures there too."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from metaformer.errors import ConfigError, MissingPackage

FOLDER: Final = "wandb"
ID: Final = "id.txt"


class Tracker:
    """Send figures to a project of Weights & Biases; the environment's WANDB_MODE and keys hold as always.

    A run that goes on in its directory goes on there as well. A service that fails ends no training.

    Args:
        project: its name there.
        run: the run directory; without a network (`WANDB_MODE=offline`) all is kept in its `wandb`.
        config: the settings, to be shown beside the figures.
        say: told when the service fails.

    Raises:
        MissingPackage: it is not installed.
        ConfigError: it does not begin: there is no key, or no network.
    """

    def __init__(
        self, project: str, run: Path, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackage("wandb", "wandb", "runtime.wandb") from error
        self.say = say
        try:
            self.run: Any = wandb.init(
                project=project,
                dir=str(run),
                name=run.name,
                id=_id(run / FOLDER),
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"runtime.wandb {project!r}: it cannot be reached ({error}): log in (wandb login), or set "
                "WANDB_MODE=offline to send the figures later (wandb sync)"
            ) from error
        # its own count of steps refuses what a resumed run does again
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, kind: str, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        """Send the figures of a step."""
        if self.run is None:
            return
        named = {f"{kind}/{name}": value for name, value in figures.items()}
        self._try(lambda: self.run.log({"step": step, "epoch": epoch, **named}))

    def close(self) -> None:
        """See that all are sent."""
        if self.run is not None:
            self._try(self.run.finish)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self.run = None
            self.say(f"warning: no figures to Weights & Biases from here on ({error}); metrics.jsonl has all")


def _id(folder: Path) -> str:
    """The run's name for the service, made once."""
    file = folder / ID
    if not file.is_file():
        folder.mkdir(exist_ok=True)
        file.write_text(secrets.token_hex(6) + "\n")
    return file.read_text().strip()
