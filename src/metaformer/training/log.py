"""Metrics log: metrics.jsonl (append-only), TensorBoard events, and Weights & Biases on request."""

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from metaformer.checkpoint.run_dir import LOG
from metaformer.errors import ConfigError, MissingPackage, OutputError
from metaformer.storage import check_replaceable

WANDB_DIR: Final = "wandb"
WANDB_ID: Final = "id.txt"


class MetricsLog:
    """Append lines to RUN/metrics.jsonl, and the same metrics to RUN/tensorboard.

    Each line is an object with `kind` (`start`, `auto`, `train`, `eval`, `resume`, `data`, `bad_image`,
    `nonfinite`, `ended`), `step` (steps done) and `epoch`.

    Args:
        run: the run directory.
        warn: prints a line when TensorBoard or Weights & Biases is missing or fails.
        project: Weights & Biases project to log to as well.
        config: the configuration, for that project.

    Raises:
        MissingPackage, ConfigError: Weights & Biases is not installed or cannot be reached.
    """

    def __init__(
        self,
        run: Path,
        warn: Callable[[str], None],
        project: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._wandb = None if project is None else WandbLog(project, run, config or {}, warn)
        file = run / LOG
        check_replaceable(file)  # opening a pipe would block
        truncated = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
        self._stream = file.open("a", encoding="utf-8")
        if truncated:
            self._stream.write("\n")  # a killed process left half a line
        self._tensorboard = _summary_writer(run / "tensorboard", warn)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
        except OSError as failed:
            if error is None:  # otherwise that error says so already
                raise self._cannot_write(failed) from failed
        finally:
            if self._wandb is not None:
                self._wandb.close()

    def write(
        self,
        kind: str,
        step: int,
        epoch: int,
        metrics: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """Append one line and flush it; a note is text for metrics.jsonl alone."""
        line: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch, **(metrics or {})}
        if note is not None:
            line["note"] = note
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
            if self._tensorboard is not None:
                for name, value in (metrics or {}).items():
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            raise self._cannot_write(error) from error
        if self._wandb is not None and metrics:
            self._wandb.log(kind, step, epoch, metrics)

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(f"{self._stream.name}: cannot write ({error.strerror})")


def _summary_writer(folder: Path, warn: Callable[[str], None]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warn(
            "no TensorBoard events (metrics.jsonl holds the same metrics); for them: "
            "pip install 'metaformer[log]'"
        )
        return None
    return SummaryWriter(str(folder))


class WandbLog:
    """Weights & Biases run; WANDB_MODE and keys are taken from the environment as always.

    A resumed run continues the same Weights & Biases run. A failure of the service does not stop training.

    Args:
        project: its project.
        run: the run directory; with WANDB_MODE=offline everything is stored in its `wandb` folder.
        config: the configuration.
        warn: prints a line when the service fails.

    Raises:
        MissingPackage: wandb is not installed.
        ConfigError: no key, or no network.
    """

    def __init__(
        self, project: str, run: Path, config: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackage("wandb", "wandb", "runtime.wandb") from error
        self.warn = warn
        try:
            self.run: Any = wandb.init(
                project=project,
                dir=str(run),
                name=run.name,
                id=_wandb_id(run / WANDB_DIR),
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"runtime.wandb {project!r}: cannot connect ({error}): log in (wandb login), or set "
                "WANDB_MODE=offline and send the metrics later (wandb sync)"
            ) from error
        # its own step counter rejects the steps that a resumed run repeats
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, kind: str, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        if self.run is None:
            return
        named = {f"{kind}/{name}": value for name, value in metrics.items()}
        self._try(lambda: self.run.log({"step": step, "epoch": epoch, **named}))

    def close(self) -> None:
        """Finish sending."""
        if self.run is not None:
            self._try(self.run.finish)

    def _try(self, send: Callable[[], object]) -> None:
        try:
            send()
        except Exception as error:
            self.run = None
            self.warn(
                f"warning: Weights & Biases failed ({error}); nothing is sent there from here on, "
                "metrics.jsonl has all metrics"
            )


def _wandb_id(folder: Path) -> str:
    """ID of the Weights & Biases run, created once per run directory."""
    file = folder / WANDB_ID
    if not file.is_file():
        folder.mkdir(exist_ok=True)
        file.write_text(secrets.token_hex(6) + "\n")
    return file.read_text().strip()
