"""The findings as Markdown: one table of claims, then each row's contenders."""

from collections.abc import Iterable, Sequence

from benchmarks.suite.outcome import Outcome, RowResult
from benchmarks.suite.row import Claim
from benchmarks.suite.verdict import Verdict
from metaformer.bench.timing import Machine

CLAIM_HEAD = ("row", "comparison", "target", "minima", "median [quartiles]", "ms, quickest round", "verdict")
CONTENDER_HEAD = (
    "contender",
    "min ms",
    "median ms",
    "images/s",
    "of GEMM ceiling",
    "of copy ceiling",
    "peak MiB",
    "ready after s",
    "told",
)
PROFILE_HEAD = (
    "row",
    "contender",
    "products",
    "passes over memory",
    "the rest",
    "of GEMM ceiling",
    "profiled by plain run",
)
NONE = "–"


def page(results: Sequence[RowResult], verdicts: Sequence[Verdict], rounds: int) -> str:
    """Write the whole page."""
    lines = ["# Benchmark", "", _conditions(results, rounds), "", *claims_table(results, verdicts)]
    lines += _profiles(results)
    for result in results:
        lines += ["", f"## {result.row.name}", ""]
        lines += [result.failure] if result.failure else _contenders(result)
    return "\n".join(lines) + "\n"


def claims_table(results: Sequence[RowResult], verdicts: Sequence[Verdict]) -> list[str]:
    """Row by row, what was to be reached and what was."""
    by_name = {result.row.name: result for result in results}
    cells = [_claim_cells(verdict, by_name[verdict.row]) for verdict in verdicts]
    return _table(CLAIM_HEAD, cells)


def _profiles(results: Sequence[RowResult]) -> list[str]:
    """Where the time of our best goes, with a title; nothing where no one was profiled."""
    cells = [_profile_cells(result, outcome) for result in results for outcome in result.outcomes]
    cells = [line for line in cells if line]
    told = (
        "Parts of a run's time. *products*: convolutions, products and attention, with what is fused into "
        "them; *passes over memory*: norms, pooling, elementwise operations, copies; *the rest*: Python, "
        "dispatch, allocation, and what PyTorch's profiler costs. Of generated code only calls of libraries "
        "can be seen (≥), and everything else counts as passes (≤)."
    )
    return ["", "## Where our time goes", "", told, "", *_table(PROFILE_HEAD, cells)] if cells else []


def _profile_cells(result: RowResult, outcome: Outcome) -> list[str]:
    found = outcome.profile
    if found is None:
        return []
    at_least, at_most, also = (
        ("≥ ", "≤ ", ", generated code and the rest") if found.rest is None else [""] * 3
    )
    return [
        result.row.name,
        outcome.name,
        f"{at_least}{found.products:.0%}",
        f"{at_most}{found.passes:.0%}{also}",
        _percent(found.rest),
        _percent(result.gemm_share(outcome)),
        f"{found.slowdown:.2f}",
    ]


def _conditions(results: Sequence[RowResult], rounds: int) -> str:
    machines: list[Machine] = list(dict.fromkeys(r.machine for r in results if r.machine is not None))
    told = "; ".join(
        f"{m.device}, {m.threads} threads, PyTorch {m.pytorch}, Python {m.python}, operations: {m.operations}"
        for m in machines
    )
    return (
        f"{told or 'nothing was measured'}. {rounds} rounds, in each of which all contenders of a row run "
        "one after the other. *minima*: ratio of both sides' quickest rounds; *median*: of the ratios round "
        "by round; *ms*: the quickest round of each contender, in bold what *minima* compares."
    )


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
        verdict.word,
    ]


def _figures(verdict: Verdict, result: RowResult) -> str:
    """Milliseconds, or for memory MiB, of ours against theirs; the compared one in bold."""
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
        _told(outcome),
    ]


def _told(outcome: Outcome) -> str:
    if outcome.name.startswith("ceiling") and outcome.timing and outcome.work:
        unit = "GB/s" if "copy" in outcome.name else "GFLOP/s"
        return f"{outcome.work / outcome.timing.minimum / 1e9:.1f} {unit}"
    return "" if outcome.difference is None else f"logits within {outcome.difference:.1e}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
