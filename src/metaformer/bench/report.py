"""What a benchmark found, as a table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from metaformer.bench.counts import By, Counts
from metaformer.bench.timing import Machine, Timing


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    image_size: tuple[int, int]
    counts: Counts
    timing: Timing | None = None


@dataclass(frozen=True)
class BenchReport:
    """Models measured in one run under the same conditions."""

    rows: tuple[Row, ...]
    machine: Machine
    settings: Mapping[str, Any]
    ratios: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """How many times as fast as `settings["against"]` each model was, round by round."""

    def text(self, by: By | None = None) -> str:
        """Make a page to read."""
        lines = [*table(COUNT_HEAD, [_count_cells(row) for row in self.rows])]
        if by:
            for row in self.rows:
                lines += ["", f"{row.name} by {by}", *table(PART_HEAD, _part_cells(row.counts, by))]
        timed = [row for row in self.rows if row.timing is not None]
        if timed:
            lines += ["", self._conditions(), *table(TIME_HEAD, [_time_cells(row) for row in timed])]
        for name, values in self.ratios.items():
            pairs = " ".join(f"{value:.2f}" for value in values)
            lines += ["", f"{name} is {median(values):.2f} times as fast as {self.settings['against']}"]
            lines += [f"(median of {len(values)} pairs: {pairs})"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "machine": asdict(self.machine),
            "settings": dict(self.settings),
            "models": [_row_dict(row) for row in self.rows],
            "ratios": {name: {"median": median(v), "pairs": list(v)} for name, v in self.ratios.items()},
        }

    def _conditions(self) -> str:
        how = "compiled" if self.settings["compile"] else "eager"
        if self.settings["optimize"]:
            how += ", ours optimized"
        if self.settings["train"]:
            how += ", forward and backward"
        machine = self.machine
        return (
            f"{machine.device}; {machine.threads} threads; PyTorch {machine.pytorch}; operations: "
            f"{machine.operations}; batch {self.settings['batch']}; {self.settings['dtype']}, "
            f"{self.settings['memory_format']}, {how}"
        )


COUNT_HEAD = ("model", "size", "params", "GMACs", "conv", "product", "attention", "Mact", "pool M", "norm M")
PART_HEAD = ("part", "params", "%", "MMACs", "%", "Mact", "pool M", "norm M")
TIME_HEAD = ("model", "images/s", "median ms", "min ms", "peak MiB")


def _count_cells(row: Row) -> list[str]:
    counts = row.counts
    giga = (counts.macs, counts.convolutions, counts.products, counts.attention)
    mega = (counts.activations, counts.pooling, counts.norms)
    height, width = row.image_size
    return [
        row.name,
        f"{height}×{width}",
        f"{counts.params:,}",
        *(f"{value / 1e9:.3f}" for value in giga),
        *(f"{value / 1e6:.2f}" for value in mega),
    ]


def _part_cells(counts: Counts, by: By) -> list[list[str]]:
    cells = []
    for name, part in counts.by(by).items():
        macs = sum(part.get(kind, 0) for kind in ("convolutions", "products", "attention"))
        params = part.get("params", 0)
        cells.append(
            [
                name,
                f"{params:,}",
                f"{100 * params / max(1, counts.params):.1f}",
                f"{macs / 1e6:.2f}",
                f"{100 * macs / max(1, counts.macs):.1f}",
                *(f"{part.get(kind, 0) / 1e6:.2f}" for kind in ("activations", "pooling", "norms")),
            ]
        )
    return cells


def _time_cells(row: Row) -> list[str]:
    timing = row.timing
    assert timing is not None
    peak = "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.0f}"
    speed = f"{timing.images_per_second:.1f}"
    return [row.name, speed, f"{1e3 * timing.median:.2f}", f"{1e3 * timing.minimum:.2f}", peak]


def _row_dict(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = {"model": row.name, "image_size": list(row.image_size), **row.counts.to_dict()}
    values["by_stage"] = row.counts.by("stage")
    values["by_mixer"] = row.counts.by("mixer")
    if row.timing is not None:
        values["seconds_per_batch"] = list(row.timing.seconds)
        values["median_ms"] = 1e3 * row.timing.median
        values["min_ms"] = 1e3 * row.timing.minimum
        values["images_per_second"] = row.timing.images_per_second
        values["peak_bytes"] = row.timing.peak_bytes
    return values


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of even width; the first to the left, figures to the right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *rows)
    ]
