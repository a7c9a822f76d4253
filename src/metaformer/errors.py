"""Errors for users: each says what was wrong, where, and what to do about it."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class MetaFormerError(Exception):
    """Error that its reader can fix; the command line prints it without a traceback."""

    def __str__(self) -> str:
        """Escape what no terminal should get and no file can hold, as names in files have it."""
        return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], super().__str__())


class ConfigError(MetaFormerError, ValueError):
    """A field holds a value that is unknown or does not fit the others."""


class UnknownName(ConfigError):
    """A name that is in no registry or table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names, name = sorted(known), str(name)[:100]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:40]) or 'none'}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")
        self.kind = kind


class SizeError(MetaFormerError, ValueError):
    """An input whose height and width the model cannot take."""


class GridError(SizeError):
    """A part for one grid of positions got features of another size."""

    def __init__(self, part: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__(
            f"{part} is made for a grid of {grid[0]}×{grid[1]} positions and got {size[0]}×{size[1]}: "
            "resize the input, or set grid_mode='interpolate'"
        )


class OptimizeError(MetaFormerError, ValueError):
    """A rewritten network that does not compute what the original does."""


class WeightsError(MetaFormerError, ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


class VersionError(WeightsError):
    """A checkpoint or package in a format that another version of this library wrote."""

    def __init__(
        self,
        path: str | Path,
        found: int,
        version: str | None,
        known: int,
        *,
        kind: str = "checkpoint",
        remedy: str = "load its model.safetensors as weights (--checkpoint, --model.checkpoint)",
    ) -> None:
        writer = f"metaformer {version}" if version else "a development version before 0.1.0"
        super().__init__(
            f"{path}: {kind} format {found} of {writer}; this version reads {known}: use the "
            f"one that wrote it, or {remedy}"
        )


class DownloadError(MetaFormerError, OSError):
    """A file that could not be fetched, or is not the file that was published."""


class DataError(MetaFormerError, ValueError):
    """A data set that is not laid out as it should be."""


class BadImage(DataError):
    """An image file that cannot be used."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Path, str]]:
        """Pickle the error with its fields, from a data worker to the main process."""
        return type(self), (self.path, self.reason)


class TooManyPixels(BadImage):
    """An image that is larger than its reader takes."""


class OutputError(MetaFormerError, OSError):
    """A file or folder that cannot be written."""


class TrainingError(MetaFormerError, RuntimeError):
    """A run that cannot go on: it names the step and what was in it."""


class RankError(TrainingError):
    """Another process of the run failed, or cannot be reached any more."""

    def __init__(self, rank: int | None, reason: str) -> None:
        super().__init__(reason if rank is None else f"rank {rank}: {reason}")


class MissingPackage(MetaFormerError, ImportError):
    """A package that is not installed: of an extra, or one that a bare machine lacks."""

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        wanted = f"'metaformer[{extra}]'" if extra else package
        super().__init__(f"{purpose} needs {package}: pip install {wanted}")
