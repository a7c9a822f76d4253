"""Published checkpoints against the accuracy that they were published with."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from metaformer.errors import DownloadError, MetaFormerError, UnknownName, WeightsError
from metaformer.report.readable import Readable
from metaformer.tasks.classification.results import ClassificationReport
from metaformer.weights.download import fetch
from metaformer.weights.sources import SOURCES, Source, find_source, split_name, tags

TOLERANCE = 0.1
"""Percentage points by which another decoder, library or device may move an accuracy."""


@dataclass(frozen=True, repr=False)
class Verdict(Readable):
    """What became of one checkpoint."""

    name: str
    published: float | None
    """Top-1 in per cent."""
    measured: float | None = None
    """Top-1 in per cent; None where it could not be measured."""
    problem: str = ""
    """Why it could not."""

    @property
    def ok(self) -> bool:
        """Tell whether measured equals published within the tolerance."""
        if self.measured is None or self.published is None:
            return False
        return abs(self.measured - self.published) <= TOLERANCE + 1e-9

    def text(self) -> str:
        """One line to read."""
        if self.measured is None or self.published is None:
            return f"{self.name:<40} error: {self.problem}"
        gap = self.measured - self.published
        word = "ok" if self.ok else "differs"
        figures = f"published {self.published:6.2f}  measured {self.measured:6.2f}  ({gap:+.2f})"
        return f"{self.name:<40} {figures}  {word}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ok": self.ok}


def verify(
    name: str,
    data: str | Path,
    *,
    split: str = "val",
    batch_size: int = 128,
    workers: int = 4,
    device: str = "auto",
    amp: Literal["none", "bf16", "fp16"] = "none",
) -> Iterator[Verdict]:
    """Download, check, convert and evaluate checkpoints with the preprocessing they were published with.

    Args:
        name: `model`, `model.tag`, a pattern such as `caformer_*`, or `all`.
        data: ImageNet's folder; `split` inside holds the 1,000 class folders.
        split: sub-folder to evaluate on.
        batch_size: images at once.
        workers: processes that read images.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: `none`, `bf16` or `fp16`.

    Yields:
        A verdict per checkpoint; one that fails does not stop the others.

    Raises:
        UnknownName: no such weights.
        WeightsError: the model has none, or none with a published ImageNet-1K accuracy.
    """
    options = {"split": split, "batch_size": batch_size, "workers": workers, "device": device, "amp": amp}
    for source in _chosen(name):
        try:
            measured = _measured(source, data, **options)
            yield Verdict(source.name, source.metrics.get("top1"), measured)
        except MetaFormerError as error:
            yield Verdict(source.name, source.metrics.get("top1"), problem=" ".join(str(error).split()))


def _chosen(name: str) -> list[Source]:
    if name == "all" or "*" in name or "?" in name:
        pattern = "*" if name == "all" else name
        chosen = [s for s in SOURCES.values() if "top1" in s.metrics and fnmatch(s.name, pattern)]
        if not chosen:
            raise UnknownName("weights", name, SOURCES)
        return chosen
    if not tags(split_name(name)[0]) and Path(name).is_dir():
        raise WeightsError(
            f"{name}: verify compares published weights with what was published of them; for own ones: "
            f"metaformer evaluate {name} --data DIR"
        )
    if not tags(split_name(name)[0]):
        raise UnknownName("weights", name, {*SOURCES, *(s.model for s in SOURCES.values())})
    source = find_source(name)
    if "top1" not in source.metrics:
        raise WeightsError(f"{source.name}: no ImageNet-1K accuracy was published for these weights")
    return [source]


def _measured(source: Source, data: str | Path, **options: Any) -> float:
    from metaformer.inference.evaluate import evaluate

    _check_hash(source, fetch(source))
    report = evaluate(source.name, data, **options)
    assert isinstance(report, ClassificationReport)
    return 100 * report.top1


def _check_hash(source: Source, file: Path) -> None:
    """Downloads are checked when they end; this also catches a file that changed in the cache since."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if not digest.startswith(source.sha256.lower()):
        raise DownloadError(
            f"{file}: its SHA-256 begins with {digest[: len(source.sha256)]}, published is {source.sha256}: "
            f"remove the file and try again"
        )
