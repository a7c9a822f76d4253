"""The figures of a run: metrics.jsonl, append-only; TensorBoard events; Weights & Biases when asked for."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from metaformer.checkpoint.run_dir import FILE
from metaformer.errors import OutputError
from metaformer.training.tracker import Tracker


class MetricsLog:
    """Append lines to RUN/metrics.jsonl, and the same figures to RUN/tensorboard.

    Each line is an object with `kind` (`train`, `eval`, `resume`, `bad_image`, `refused`), `step` (steps
    done) and `epoch`.

    Args:
        run: the run directory.
        say: told what is missing or fails, besides the file.
        project: of Weights & Biases, for the same figures once more.
        config: the settings, for that project.

    Raises:
        MissingPackage, ConfigError: a project is named, and cannot be sent to.
    """

    def __init__(
        self,
        run: Path,
        say: Callable[[str], None],
        project: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._tracker = None if project is None else Tracker(project, run, config or {}, say)
        file = run / FILE
        cut = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
        self._stream = file.open("a", encoding="utf-8")
        if cut:
            self._stream.write("\n")  # a killed process left half a line
        self._board = _summary_writer(run / "tensorboard", say)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
            if self._board is not None:
                self._board.close()
        except OSError as failed:
            if error is None:  # else it has been told
                raise self._unwritable(failed) from failed
        finally:
            if self._tracker is not None:
                self._tracker.close()

    def write(
        self,
        kind: str,
        step: int,
        epoch: int,
        figures: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """Append one line, and see it on its way to the disk; a note is words for the line alone."""
        line: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch, **(figures or {})}
        if note is not None:
            line["note"] = note
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
            if self._board is not None:
                for name, value in (figures or {}).items():
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            raise self._unwritable(error) from error
        if self._tracker is not None and figures:
            self._tracker.log(kind, step, epoch, figures)

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self._stream.name}: cannot write ({error.strerror})")


def _summary_writer(folder: Path, say: Callable[[str], None]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say(
            "no TensorBoard events: pip install 'metaformer[log]' for them "
            "(metrics.jsonl holds the same figures)"
        )
        return None
    return SummaryWriter(str(folder))
