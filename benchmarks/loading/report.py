"""What was found about loaders, as a page and as JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from benchmarks.loading.feed import OURS
from benchmarks.loading.settings import PIPELINES, LoadingConfig
from metaformer.bench.run import table
from metaformer.bench.timing import Machine, Timing, ratios
from metaformer.process import cores

HEAD = (
    "loader",
    "best images/s",
    "median",
    "core ms each",
    "ours by it: best",
    "median of pairs",
    "quartiles",
)


@dataclass(frozen=True)
class Measured:
    """One loader in one pipeline."""

    timing: Timing | None = None
    """Seconds of an epoch, one value per round."""
    effort: tuple[float, ...] = ()
    """Seconds of one core that an epoch took, in all processes together; empty where that is not known."""
    failure: str = ""
    """Why there is no timing."""


@dataclass(frozen=True)
class LoadingReport:
    """Loaders that were measured in turn, and the speed of the model that they feed."""

    loaders: Mapping[str, Mapping[str, Measured]]
    """By pipeline, then by loader."""
    model_speed: float
    """Images per second that the model trains on."""
    config: LoadingConfig
    machine: Machine

    def text(self) -> str:
        """Make a page to read."""
        config, machine = self.config, self.machine
        what = "made images of 500×375" if config.root is None else str(config.root)
        lines = [
            f"{machine.device}; PyTorch {machine.pytorch}; {config.processes} workers; {config.size}×"
            f"{config.size}; batch {config.batch}; {what}",
        ]
        for pipeline, loaders in self.loaders.items():
            rows = [_cells(name, found, loaders[OURS]) for name, found in loaders.items() if found.timing]
            lines += ["", f"{pipeline}: {PIPELINES[pipeline]}", *table(HEAD, rows)]
            lines += [f"{name}: {found.failure}" for name, found in loaders.items() if found.failure]
        if "train" in self.loaders:
            lines += ["", self.verdict()]
        return "\n".join(lines)

    def verdict(self) -> str:
        """Say whether the loader holds training up, and how many workers would not."""
        speed, rate = self.model_speed, self._rate()
        model = self.config.model if self.config.model_speed is None else "the model"
        told = f"{model} trains on {speed:.0f} images/s, our loader makes {rate:.0f} of them: "
        each = rate / max(1, self.config.processes)
        needed = math.ceil(speed / each)
        if rate < speed:
            return f"{told}it IS the bottleneck; about {needed} workers, each with a core, would keep up"
        told += f"not the bottleneck; {needed} of {max(1, self.config.processes)} workers would do"
        if self.machine.device.startswith("cpu") and self.config.model_speed is None:
            share = 1 / (1 + cores() * each / speed)
            told += f", and take {100 * share:.1f} % of the time of the cores that they share with the model"
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "machine": asdict(self.machine),
            "settings": {name: _plain(value) for name, value in asdict(self.config).items()},
            "pipelines": {
                pipeline: {name: self._row(loaders, name) for name in loaders}
                for pipeline, loaders in self.loaders.items()
            },
            "model_images_per_second": self.model_speed,
            "verdict": self.verdict() if "train" in self.loaders else None,
        }

    def _rate(self) -> float:
        timing = self.loaders["train"][OURS].timing
        assert timing is not None
        return timing.images_per_second

    def _row(self, loaders: Mapping[str, Measured], name: str) -> dict[str, Any]:
        ours, timing = loaders[OURS].timing, loaders[name].timing
        if timing is None or ours is None:
            return {"failure": loaders[name].failure}
        pairs = ratios(ours, timing)
        return {
            "seconds_per_epoch": list(timing.seconds),
            "core_seconds_per_epoch": list(loaders[name].effort),
            "images": timing.batch,
            "images_per_second": timing.images_per_second,
            "best_images_per_second": timing.batch / timing.minimum,
            "ours_by_it": {"best": timing.minimum / ours.minimum, "median": median(pairs), "pairs": pairs},
        }


def _cells(name: str, found: Measured, ours: Measured) -> list[str]:
    timing = found.timing
    assert timing is not None and ours.timing is not None
    effort = f"{1e3 * median(found.effort) / timing.batch:.2f}" if found.effort else "-"
    speeds = [f"{timing.batch / timing.minimum:.0f}", f"{timing.images_per_second:.0f}", effort]
    if found is ours:
        return [name, *speeds, "", "", ""]
    pairs = ratios(ours.timing, timing)
    low, _, high = quantiles(pairs, n=4) if len(pairs) > 1 else (pairs * 3)
    return [
        name,
        *speeds,
        f"{timing.minimum / ours.timing.minimum:.2f}",
        f"{median(pairs):.2f}",
        f"{low:.2f} to {high:.2f}",
    ]


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | str | None | tuple) else str(value)
