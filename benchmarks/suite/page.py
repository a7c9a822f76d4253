"""Results as Markdown, a table of claims and one of each row's contenders, and as an image."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.result import Outcome, RowResult, Verdict
from benchmarks.suite.rows import Claim
from metaformer.bench.timing import Machine
from metaformer.storage import atomic_bytes

CLAIM_HEAD = ("row", "comparison", "target", "minima", "median [quartiles]", "ms, fastest round", "verdict")
CONTENDER_HEAD = (
    "contender",
    "min ms",
    "median ms",
    "images/s",
    "of GEMM ceiling",
    "of copy ceiling",
    "peak MiB",
    "ready after s",
    "note",
)
PROFILE_HEAD = (
    "row",
    "contender",
    "products",
    "passes over memory",
    "the rest",
    "of GEMM ceiling",
    "profiled / plain run",
    "kernels",
)
NONE = "–"
REACHED, MISSED, NO_TARGET = "#2f855a", "#c05621", "#718096"


def page(results: Sequence[RowResult], verdicts: Sequence[Verdict], rounds: int, kept_to: str = "all") -> str:
    """The whole page.

    Args:
        results: the rows.
        verdicts: of all their claims.
        rounds: measurements of each contender.
        kept_to: newest instructions that contenders might use, a key of `processor.KEPT_TO`.
    """
    lines = ["# Benchmark", "", *summary(results, verdicts, rounds, kept_to)]
    lines += _profiles(results)
    for result in results:
        lines += ["", f"## {result.row.name}", ""]
        lines += [result.failure] if result.failure else _contenders(result)
    return "\n".join(lines) + "\n"


def summary(
    results: Sequence[RowResult], verdicts: Sequence[Verdict], rounds: int, kept_to: str = "all"
) -> list[str]:
    """Machine and conditions, the table of the claims, and which kernels ran; arguments as of `page`."""
    lines = [_conditions(results, rounds, kept_to), "", *claims_table(results, verdicts)]
    kernels = dict.fromkeys(
        name for result in results for outcome in result.outcomes if outcome.profile
        for name in outcome.profile.kernels
    )  # fmt: skip
    return [*lines, "", f"Kernels of our best contenders: {', '.join(kernels)}."] if kernels else lines


def claims_table(results: Sequence[RowResult], verdicts: Sequence[Verdict]) -> list[str]:
    """The claims with their targets and ratios."""
    by_name = {result.row.name: result for result in results}
    cells = [_claim_cells(verdict, by_name[verdict.row]) for verdict in verdicts]
    return _table(CLAIM_HEAD, cells)


def _profiles(results: Sequence[RowResult]) -> list[str]:
    """Profiles of our best contenders, with a title; empty where none was profiled."""
    cells = [_profile_cells(result, outcome) for result in results for outcome in result.outcomes]
    cells = [line for line in cells if line]
    legend = (
        "Shares of a run's time. *products*: convolutions, products and attention, with what is fused into "
        "them; *passes over memory*: norms, pooling, elementwise operations, copies; *the rest*: Python, "
        "dispatch, allocation, and the profiler's overhead. Of generated code only calls of libraries are "
        "recorded (≥), and everything else counts as passes (≤)."
    )
    return (
        ["", "## Profiles of our best contenders", "", legend, "", *_table(PROFILE_HEAD, cells)]
        if cells
        else []
    )


def _profile_cells(result: RowResult, outcome: Outcome) -> list[str]:
    profile = outcome.profile
    if profile is None:
        return []
    at_least, at_most, also = (
        ("≥ ", "≤ ", ", generated code and the rest") if profile.rest is None else [""] * 3
    )
    return [
        result.row.name,
        outcome.name,
        f"{at_least}{profile.products:.0%}",
        f"{at_most}{profile.passes:.0%}{also}",
        _percent(profile.rest),
        _percent(result.gemm_share(outcome)),
        f"{profile.slowdown:.2f}",
        ", ".join(profile.kernels) or NONE,
    ]


def _conditions(results: Sequence[RowResult], rounds: int, kept_to: str) -> str:
    machines: list[Machine] = list(dict.fromkeys(r.machine for r in results if r.machine is not None))
    limit = "" if kept_to == "all" else f", kept to {kept_to}"
    text = "; ".join(
        f"{m.device}{_instructions(m)}{limit}, {m.threads} threads, PyTorch {m.pytorch}, Python {m.python}, "
        f"operations: {m.operations}"
        for m in machines
    )
    return (
        f"{text or 'nothing was measured'}. {rounds} rounds, in each of which all contenders of a row run "
        "one after the other. *minima*: ratio of both sides' fastest rounds; *median*: of the ratios round "
        "by round; *ms*: the fastest round of each contender, in bold what *minima* compares."
    )


def _instructions(machine: Machine) -> str:
    """What the processor has, and PyTorch uses, in parentheses; nothing on CUDA."""
    return f" ({machine.instructions or 'no AVX2'}; PyTorch at {machine.level})" if machine.level else ""


def _claim_cells(verdict: Verdict, result: RowResult) -> list[str]:
    quartiles = verdict.quartiles
    spread = f" [{quartiles[0]:.3f}, {quartiles[1]:.3f}]" if quartiles else ""
    middle = NONE if verdict.median is None else f"{verdict.median:.3f}{spread}"
    return [
        result.row.name,
        verdict.claim.title,
        verdict.claim.goal,
        NONE if verdict.minima is None else f"{verdict.minima:.3f}",
        middle,
        _figures(verdict, result),
        verdict.text,
    ]


def _figures(verdict: Verdict, result: RowResult) -> str:
    """Milliseconds or, for memory, MiB of ours and theirs; the compared one in bold."""
    claim = verdict.claim
    sides = ((claim.ours, verdict.ours), (claim.theirs, verdict.theirs))
    return " : ".join(_side(claim, result, names, best) for names, best in sides)


def _side(claim: Claim, result: RowResult, names: Iterable[str], best: str) -> str:
    parts = []
    for name in names:
        figure = _figure(claim, result[name])
        parts.append(f"**{name} {figure}**" if name == best else f"{name} {figure}")
    return ", ".join(parts) or NONE


def _figure(claim: Claim, outcome: Outcome) -> str:
    if claim.kind == "memory":
        return NONE if outcome.memory is None else f"{outcome.memory / 2**20:.0f} MiB"
    return NONE if outcome.timing is None else f"{1e3 * outcome.timing.minimum:.2f}"


def _contenders(result: RowResult) -> list[str]:
    return _table(CONTENDER_HEAD, [_contender_cells(result, outcome) for outcome in result.outcomes])


def _contender_cells(result: RowResult, outcome: Outcome) -> list[str]:
    timing = outcome.timing
    if timing is None:
        return [outcome.name, *[NONE] * 7, outcome.failure.replace("|", "\\|")]
    ceiling = outcome.name.startswith("ceiling")
    return [
        outcome.name,
        f"{1e3 * timing.minimum:.2f}",
        f"{1e3 * timing.median:.2f}",
        NONE if ceiling else f"{timing.images_per_second:.1f}",
        _percent(None if ceiling else result.gemm_share(outcome)),
        _percent(result.copy_share(outcome)),
        NONE if outcome.memory is None else f"{outcome.memory / 2**20:.0f}",
        NONE if outcome.prepared is None else f"{outcome.prepared:.1f}",
        _note(outcome),
    ]


def _note(outcome: Outcome) -> str:
    if outcome.name.startswith("ceiling") and outcome.timing and outcome.work:
        unit = "GB/s" if "copy" in outcome.name else "GFLOP/s"
        return f"{outcome.work / outcome.timing.minimum / 1e9:.1f} {unit}"
    return "" if outcome.difference is None else f"logits within {outcome.difference:.1e}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def plot(verdicts: Sequence[Verdict], file: Path) -> str:
    """Draw each claim's ratio, quartiles and target; returns a line about the result.

    Raises:
        OutputError: the file cannot be written.
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
    with atomic_bytes(file) as stream:
        figure.savefig(stream, format="png", dpi=150)
    return f"image: {file}"


def _bar(axes: Any, height: int, verdict: Verdict) -> None:
    middle, target = verdict.median or 0.0, verdict.claim.target
    low, high = verdict.quartiles or (middle, middle)
    reached = verdict.text.startswith("reached")
    color = NO_TARGET if target is None else REACHED if reached else MISSED
    axes.barh(height, middle - 1, left=1, color=color, height=0.6)
    axes.hlines(height, low, high, color="black", linewidth=1.5)
    axes.plot(verdict.minima, height, "o", color="black", markersize=3)
    if target is not None:
        axes.vlines(target, height - 0.4, height + 0.4, color="black", linestyles="dashed", linewidth=1)
