"""Sections of a study's report on how far to trust it: controls, power, threats, all runs and the plan."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from metaformer.report.blocks import Code, Link, Listing, Note, Row, Section, Table
from metaformer.study.analysis import REPEAT, SHUFFLED, Analysis
from metaformer.study.plan import SEEDS
from metaformer.study.results import Arm, RunResult
from metaformer.study.sections.findings import interval, points, signed
from metaformer.study.statistics import MOST_SEEDS, POWER

FEW_CLUSTERS: Final = 20
"""Clusters of test images below which an interval is rough."""


def controls(analysis: Analysis) -> Section:
    """What every study checks itself by."""
    rows = [
        Row([arm.name, _PURPOSES.get(arm.control, ""), *_control_outcome(analysis, arm)])
        for arm in analysis.study.arms
        if arm.control is not None
    ]
    columns = ("control", "what it is for", "found", "outcome")
    return Section("Controls", [Table(columns, rows, left=4)] if rows else [])


_PURPOSES: Final = {
    REPEAT: "the baseline with other seeds (A/A): neither better nor worse, but in one sound study of 20",
    SHUFFLED: "the baseline, trained on shuffled labels: at chance, or test images leak",
    "identity": "no mixer: what the rest of the network does alone",
    "random": "frozen random mixing: what any exchange between positions gives",
    "external": "a network of another family at the same budget: whether the recipe is sound",
}


def power(analysis: Analysis) -> Section:
    """What each comparison could have found."""
    smallest, rows = analysis.study.plan.smallest_effect, []
    for name in analysis.ranked:
        spread, reach = analysis.comparisons[name].difference.spread, analysis.reach[name]
        error, _ = spread.error()
        share = spread.test_set / error**2 if error else 0.0
        seeds = "more test images" if reach.too_few_images else f"{reach.seeds or f'more than {MOST_SEEDS}'}"
        found = f"{reach.smallest:.2f}" if reach.smallest <= 100 else "none"
        rows.append(Row([name, f"{spread.seeds}", f"{error:.2f}", f"{share:.0%}", found, seeds]))
    columns = ("network", "seeds", "standard error", "of it the test set", "smallest detectable",
               f"seeds for {points(smallest)}")  # fmt: skip
    note = (
        f"In points. Detectable: claimed with probability {POWER:.0%} in Holm's first step "
        "if seeds and test images vary as they did here; none where not even 100 points would be. The test "
        "set's share of the variance is what no number of seeds lessens."
    )
    return Section("What this study can find", [Table(columns, rows)] if rows else [], note=note)


def threats(analysis: Analysis) -> Section:
    """What speaks against the findings: in this study, and in all of this form."""
    return Section("Threats to validity", [Listing([*_own_threats(analysis), *_GENERAL])])


_GENERAL: Final = (
    "One data set, one recipe and one skeleton: other data, longer training or larger networks may order "
    "the mixers otherwise.",
    "Only the learning rate is tuned for each network; the rest of the recipe may suit one more than others.",
    "All networks train for equally many epochs, not for equally long; costs were measured on one machine.",
    "The intervals speak of other seeds and of other test images like these, not of other training sets.",
)


def _own_threats(analysis: Analysis) -> Iterator[str]:
    study, plan = analysis.study, analysis.study.plan
    fewest = min(
        (len(runs) for name, runs in analysis.correct.items() if name in analysis.comparisons), default=0
    )
    if fewest < len(plan.seeds):
        yield (
            f"Some networks have {fewest} of the {len(plan.seeds)} planned seeds. To stop or go on because "
            "of what is seen makes false claims likelier."
        )
    if fewest < SEEDS["confirmatory"]:
        explore, confirm = SEEDS["exploratory"], SEEDS["confirmatory"]
        yield f"{fewest} seeds: it takes {explore} to explore and {confirm} to confirm."
    if failed := [run.name for run in study.runs if run.error is not None]:
        names = ", ".join(failed[:5]) + (" …" if len(failed) > 5 else "")
        yield f"Some runs failed or were excluded, and which ones may depend on the network: {names}."
    if edges := [arm.name for arm in analysis.networks if analysis.on_edge(arm)]:
        yield (
            "The best learning rate is the lowest or highest tried, so that a better one may lie beyond: "
            f"{', '.join(edges)}."
        )
    if plan.fewer_rates:
        yield f"Learning rates tried: {len(plan.learning_rates)} ({plan.fewer_rates})."
    yield from _test_set_threats(analysis)
    if plan.budget.match == "none":
        yield "Networks have different budgets: a better mixer may simply cost more."
    comparison, chance = analysis.repeat, analysis.over_chance
    if comparison and comparison.verdict in ("better", "worse"):
        yield "The baseline differs from itself with other seeds: a chance of one in 20, or a fault."
    if chance and chance.low > 0:
        yield "Networks trained on shuffled labels are above chance: training may have seen test images."


def _test_set_threats(analysis: Analysis) -> Iterator[str]:
    clusters = len(set(analysis.study.test_set.clusters.tolist()))
    if analysis.study.plan.data.group is None:
        yield (
            "Test images count as independent; if they come in groups (of a patient, an artist), intervals "
            "are too short: name the groups (data.group)."
        )
    elif clusters < FEW_CLUSTERS:
        yield f"The test images are of {clusters} groups: few, so that the intervals are rough."


def runs(analysis: Analysis) -> Section:
    """Failed and excluded runs, then all."""
    failed = [
        Row([_run_link(run), run.arm, run.role, f"{run.learning_rate:g}", f"{run.seed}", run.error])
        for run in analysis.study.runs
        if run.error is not None
    ]
    every = [
        Row([_run_link(run), run.arm, run.role, f"{run.learning_rate:g}", f"{run.seed}",
             *("–" if value is None else f"{value:.2f}" for value in (run.validation, run.test))])
        for run in analysis.study.runs
    ]  # fmt: skip
    columns = ("run", "network", "role", "learning rate", "seed")
    return Section(
        "Runs",
        [
            Note("Failed or excluded:"),
            Table((*columns, "reason"), failed, left=3),
            Note("All:"),
            Table((*columns, "validation", "test"), every, left=3),
        ],
        note=f"Accuracy in percent. Excluded is what the plan names: {analysis.study.plan.exclusions}.",
    )


def plan(analysis: Analysis) -> Section:
    """The plan, as it was before the first run."""
    study = analysis.study
    versions = ", ".join(f"{name} {version}" for name, version in sorted(study.versions.items()))
    note = f"SHA-256 of the plan: {study.plan_sha256}. Begun {study.created} with {versions}."
    return Section("Plan", [Code(study.directory.plan.read_text(encoding="utf-8"))], note=note)


def _control_outcome(analysis: Analysis, arm: Arm) -> tuple[str, str]:
    """What a control found, and whether that is as it should be."""
    comparison = analysis.comparison(arm)
    if arm.control == SHUFFLED:
        found = analysis.over_chance
        if found is None:
            return "–", "not run yet"
        side = "at" if found.low <= 0 <= found.high else "above" if found.low > 0 else "below"
        return f"{signed(found.value)} points over chance ({interval(found)})", f"{side} chance"
    if comparison is None:
        return "–", "not run yet"
    shown = f"{signed(comparison.difference.value)} points ({interval(comparison.difference)})"
    if arm.control == REPEAT:
        return shown, "fails" if comparison.verdict in ("better", "worse") else "holds"
    return shown, comparison.verdict


def _run_link(run: RunResult) -> Link:
    return Link(run.name, quote(f"runs/{run.name}/"))
