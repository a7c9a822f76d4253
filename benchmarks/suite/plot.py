"""The findings as an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.verdict import Verdict
from metaformer.storage import atomic_bytes

REACHED, MISSED, TOLD = "#2f855a", "#c05621", "#718096"


def plot(verdicts: Sequence[Verdict], place: Path) -> str:
    """Draw each claim's ratio, its spread and its target; say why not where that cannot be done.

    Raises:
        OutputError: the place cannot be written to.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no image: matplotlib is not installed: pip install matplotlib"
    drawn = [verdict for verdict in verdicts if verdict.median is not None]
    if not drawn:
        return "no image: nothing was compared"
    figure: Any = Figure(figsize=(10, 1.2 + 0.45 * len(drawn)), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="ratio: bar median with quartiles, dot minima, line target"
    )
    for height, verdict in enumerate(reversed(drawn)):
        _bar(axes, height, verdict)
    axes.set_yticks(range(len(drawn)), [f"{v.row}\n{v.claim.title}" for v in reversed(drawn)], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    with atomic_bytes(place) as stream:
        figure.savefig(stream, format="png", dpi=150)
    return f"image: {place}"


def _bar(axes: Any, height: int, verdict: Verdict) -> None:
    middle, target = verdict.median or 0.0, verdict.claim.target
    low, high = verdict.quartiles or (middle, middle)
    reached = verdict.word.startswith("reached")
    color = TOLD if target is None else REACHED if reached else MISSED
    axes.barh(height, middle - 1, left=1, color=color, height=0.6)
    axes.hlines(height, low, high, color="black", linewidth=1.5)
    axes.plot(verdict.minima, height, "o", color="black", markersize=3)
    if target is not None:
        axes.vlines(target, height - 0.4, height + 0.4, color="black", linestyles="dashed", linewidth=1)
