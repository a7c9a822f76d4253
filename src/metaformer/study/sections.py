"""Sections of a study's report: sentences from verdicts, tables and charts."""

from collections.abc import Callable, Iterator, Sequence
from math import isnan
from typing import Final
from urllib.parse import quote

import numpy as np
from PIL import Image

from metaformer.report.blocks import (
    Block,
    Code,
    Example,
    Examples,
    Figure,
    Figures,
    Link,
    Listing,
    Note,
    Row,
    Section,
    Table,
    data_uri,
)
from metaformer.report.chart import Effect, Line, Point, dot_chart, forest_chart, line_chart, scatter_chart
from metaformer.report.page import Tile
from metaformer.study.analysis import REPEAT, SHUFFLED, Analysis, sweep_means
from metaformer.study.plan import SEEDS
from metaformer.study.results import Arm, Cost, RunResult
from metaformer.study.statistics import LEVEL, POWER, Comparison, Estimate, Verdict
from metaformer.visualize.heat import color_map

FEW_CLUSTERS: Final = 20
"""Clusters of test images below which an interval is rough."""
FIELD: Final = 168
"""Pixels of a drawn receptive field, at least."""
_TONES: Final[dict[Verdict, str]] = {
    "better": "good", "worse": "bad", "equivalent": "even", "unresolved": "open",
}  # fmt: skip


def report_sections(analysis: Analysis) -> list[Section]:
    """All sections, in the order of the page; those without blocks are left out."""
    return [
        findings(analysis),
        costs(analysis),
        learning_rates(analysis),
        classes(analysis),
        receptive_fields(analysis),
        robustness(analysis),
        diagnostics(analysis),
        transfer(analysis),
        controls(analysis),
        power(analysis),
        Section("Threats to validity", [Listing(threats(analysis))]),
        runs(analysis),
        plan(analysis),
    ]


def tiles(analysis: Analysis) -> list[Tile]:
    """The numbers at the top."""
    study, clusters = analysis.study, len(set(analysis.study.test_set.clusters.tolist()))
    seeds = {len(runs) for arm, runs in analysis.correct.items() if study.arm(arm).control != SHUFFLED}
    images = len(study.test_set.images)
    found = [
        (str(len(study.plan.mixers)), "mixers"),
        (
            " to ".join(f"{count}" for count in sorted({min(seeds), max(seeds)})) if seeds else "0",
            "seeds each",
        ),
        (f"{images:,}", "test images" + (f" in {clusters:,} groups" if clusters < images else "")),
        (f"±{study.plan.smallest_effect:g}", "points, smallest effect of interest"),
    ]
    failed = sum(run.error is not None for run in study.runs)
    return [*found, (f"{failed} of {len(study.runs)}", "runs failed or excluded")]


def findings(analysis: Analysis) -> Section:
    """Verdicts as sentences, effects and seeds as charts, and all figures of the comparisons."""
    study = analysis.study
    sentences = [verdict_sentence(analysis, name) for name in analysis.ranked]
    waiting = [arm.name for arm in study.arms if arm.name not in analysis.accuracy]
    if waiting:
        sentences.append(f"Not compared yet, for want of two seeds: {', '.join(waiting)}.")
    effects = [_effect(name, analysis.comparisons[name]) for name in analysis.ranked]
    rows = [*analysis.ranked, study.plan.baseline]
    dots = [(name, _accuracies(analysis, name)) for name in rows if name in analysis.correct]
    label = f"difference to {study.plan.baseline} in points"
    figures = [Figure("Seeds", [], dot_chart(dots, "test accuracy in percent", label="accuracy of each run"))]
    if effects:
        forest = forest_chart(effects, label, study.plan.smallest_effect, label=label)
        figures.insert(0, Figure("Effects with 95 % intervals", [], forest))
    note = (
        f"Green is better than {study.plan.baseline}, red worse, blue equivalent, an open circle unresolved; "
        "shaded are differences below the smallest effect of interest, strokes are means. A verdict needs p "
        f"below {LEVEL} after Holm's correction over all {len(effects)} comparisons, so that an interval may "
        "exclude 0 without one. P(A > B) is how often the network is ahead with one seed."
    )
    return Section("Findings", [Listing(sentences), Figures(figures), _comparison_table(analysis)], note=note)


def verdict_sentence(analysis: Analysis, name: str) -> str:
    """What may be claimed of a network, with the figures that it rests on."""
    comparison, plan = analysis.comparisons[name], analysis.study.plan
    found, smallest = comparison.difference, plan.smallest_effect
    figures = f"{signed(found.value)} points (95 % interval {_interval(found)}, "
    verdict = comparison.verdict
    if verdict == "equivalent":
        return (
            f"{name} and {plan.baseline} are equivalent within ±{smallest:g} points: "
            f"{figures}{_p(comparison.p_equivalent)} "
            "for a difference that large)."
        )
    if verdict == "unresolved":
        return (
            f"{name} against {plan.baseline} is unresolved: {figures}{_p(comparison.p)}). "
            f"{_what_it_takes(analysis, name)}"
        )
    reached = min(abs(found.low), abs(found.high)) >= smallest
    size = (
        ""
        if reached
        else f" Whether it reaches the smallest effect of interest, {smallest:g} points, is open."
    )
    return f"{name} is {verdict} than {plan.baseline}: {figures}{_p(comparison.p)}).{size}"


def costs(analysis: Analysis) -> Section:
    """Accuracy against costs, and all costs by image size."""
    study, measured = analysis.study, {arm.name: analysis.cost(arm) for arm in analysis.study.arms}
    kinds: dict[str, Callable[[Arm, Cost | None], float | None]] = {
        "parameters in millions": lambda arm, cost: arm.parameters / 1e6,
        "multiply-accumulates in millions": lambda arm, cost: cost.macs / 1e6 if cost else None,
        "milliseconds per image": lambda arm, cost: cost.latency_1 if cost else None,
    }
    figures = []
    for kind, read in kinds.items():
        points = [
            Point(arm.name, x, analysis.accuracy[arm.name].value, arm.control is not None)
            for arm in study.arms
            if arm.name in analysis.accuracy and (x := read(arm, measured[arm.name])) and _is_network(arm)
        ]
        if points:
            figures.append(Figure(f"Accuracy by {kind}", [], scatter_chart(points, kind, label=kind)))
    columns = ("network", "changed to fit", "image size", "parameters", "MACs", "ms, batch 1", "ms, batch 8",
               "MB, forward", "MB, training")  # fmt: skip
    rows = [Row(cells) for arm in study.arms if _is_network(arm) for cells in _cost_rows(arm)]
    machine = ", ".join(f"{name} {value}" for name, value in study.machine.items() if value)
    note = f"Dashed: the Pareto front of the mixers; gray: controls. Measured on {machine}; batches are of images."
    return Section("Costs", [Figures(figures), Table(columns, rows, left=2)] if figures else [], note=note)


def learning_rates(analysis: Analysis) -> Section:
    """Validation accuracy over the learning rate, with what was chosen."""
    lines = [
        Line(arm.name, sweep_means(analysis.study.runs, arm.name), dots=True, mark=arm.learning_rate)
        for arm in analysis.networks
    ]
    if not any(line.points for line in lines):
        return Section("Learning rates", [])
    chart = line_chart(lines, "learning rate", label="validation accuracy by learning rate", ratios=True)
    rows = [
        Row([arm.name, f"{arm.learning_rate:g}" if arm.learning_rate else "–", _edge_note(analysis, arm)])
        for arm in analysis.networks
    ]
    figures = Figures([Figure("Validation accuracy in percent", [line.name for line in lines], chart)])
    note = (
        "Mean over the seeds of the tuning, which are not used again; a ring marks the choice. A flat curve "
        "owes little to tuning."
    )
    table = Table(("network", "chosen", ""), rows, left=1)
    return Section("Learning rates", [figures], [table], note=note)


def classes(analysis: Analysis) -> Section:
    """Differences of each class to the baseline, those first where they vary most."""
    differences, test_set = analysis.class_differences(), analysis.study.test_set
    if not differences:
        return Section("Classes", [])
    table = np.stack(list(differences.values()), axis=1)  # (K, arms)
    sizes = np.bincount(test_set.labels, minlength=len(table))
    spread = np.where(sizes > 0, np.abs(table).max(1), -1)
    rows = [
        Row([test_set.class_names[k], f"{sizes[k]:,}", *("–" if isnan(x) else signed(x) for x in table[k])])
        for k in np.argsort(-spread, kind="stable")
    ]
    note = (
        f"Points of accuracy more or less than {analysis.study.plan.baseline}, the largest first. Among so "
        "many differences some are due to chance: they suggest what to look at, and prove nothing."
    )
    return Section("Classes", [Table(("class", "images", *differences), rows)], note=note)


def receptive_fields(analysis: Analysis) -> Section:
    """Effective receptive fields, mean over the seeds that were measured."""
    study, examples = analysis.study, []
    for arm in study.arms:
        measured = [one for one in study.mechanisms if one.arm == arm.name]
        fields = [field for one in measured if (field := study.receptive_field(one.run)) is not None]
        if fields:
            field = color_map(np.mean(fields, axis=0))
            times = -(-FIELD // min(field.size))
            large = field.resize((field.width * times, field.height * times), Image.Resampling.NEAREST)
            examples.append(Example({"field": data_uri(large)}, arm.name, _squares(analysis, arm)))
    note = (
        "How much the center of the last features depends on each pixel: the size of the gradient, on a "
        "logarithmic scale."
    )
    return Section("Effective receptive fields", [Examples("", examples)] if examples else [], note=note)


def robustness(analysis: Analysis) -> Section:
    """Accuracy on changed test images, mean over seeds, and for corruptions over their kinds."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    kinds: dict[str, dict[str, list[float]]] = {}
    for mechanism in analysis.study.mechanisms:
        for one in mechanism.robustness:
            levels = found.setdefault(one.probe, {}).setdefault(mechanism.arm, {})
            levels.setdefault(one.level, []).append(one.accuracy)
            if one.probe == "corruption":
                kinds.setdefault(one.change, {}).setdefault(mechanism.arm, []).append(one.accuracy)
    units = {"shift": "pixels", "rotation": "degrees", "size": "side in pixels", "corruption": "severity"}
    figures = [_curves(analysis, f"Accuracy by {probe}", units[probe], arms) for probe, arms in found.items()]
    blocks: list[Block] = [Figures(figures)] if figures else []
    if kinds:
        names = [arm.name for arm in analysis.networks]
        rows = [
            Row([kind, *(f"{np.mean(arms[n]):.1f}" if n in arms else "–" for n in names)])
            for kind, arms in kinds.items()
        ]
        blocks.append(Table(("corruption", *names), rows))
    return Section(
        "Changed images", blocks, note="Accuracy in percent, mean over seeds; corruptions over severities."
    )


def diagnostics(analysis: Analysis) -> Section:
    """Accuracy on synthetic tasks by what they demand."""
    tasks: dict[str, dict[str, dict[float, list[float]]]] = {}
    chances: dict[str, set[float]] = {}
    for one in analysis.study.diagnostics:
        if one.accuracy is None:
            continue
        arms = tasks.setdefault(one.task, {})
        arms.setdefault(one.arm, {}).setdefault(float(one.demand), []).append(one.accuracy)
        chances.setdefault(one.task, set()).add(one.chance)
    figures = [_curves(analysis, task, "demand", arms) for task, arms in tasks.items()]
    chance = "; ".join(
        f"{task} {' to '.join(f'{c:.1f}' for c in sorted({min(values), max(values)}))} %"
        for task, values in chances.items()
    )
    note = (
        "Accuracy in percent on small tasks of known demand, mean over seeds; a line ends where its network "
        f"takes no such size. Chance: {chance}."
    )
    return Section("Diagnostic tasks", [Figures(figures)] if figures else [], note=note)


def transfer(analysis: Analysis) -> Section:
    """Networks of the baseline whose mixers were swapped, before and after tuning."""
    rows, transfers = [], analysis.study.transfers
    for arm in analysis.study.arms:
        found = [(one.swapped, one.tuned) for one in transfers if one.arm == arm.name and one.error is None]
        means = [
            f"{np.mean([v for v in values if v is not None]):.2f}" for values in zip(*found, strict=True)
        ]
        if found:
            scratch = analysis.accuracy.get(arm.name)
            rows.append(Row([arm.name, f"{len(found)}", *means, f"{scratch.value:.2f}" if scratch else "–"]))
    columns = ("mixer", "seeds", "after the swap", "after tuning", "from scratch")
    failed = [f"{one.arm}, seed {one.seed} failed: {one.error}" for one in transfers if one.error is not None]
    note = f"Test accuracy in percent of trained {analysis.study.plan.baseline} networks whose mixers were replaced."
    return Section("Transfer", [Table(columns, rows), Listing(failed)] if transfers else [], note=note)


def controls(analysis: Analysis) -> Section:
    """What every study checks itself by."""
    rows = []
    for arm in analysis.study.arms:
        if arm.control is not None:
            rows.append(Row([arm.name, _PURPOSES.get(arm.control, ""), *_control_outcome(analysis, arm)]))
    columns = ("control", "what it is for", "found", "outcome")
    return Section("Controls", [Table(columns, rows, left=4)] if rows else [])


_PURPOSES: Final = {
    REPEAT: "the baseline with other seeds (A/A): neither better nor worse; sound studies fail this once in twenty",
    SHUFFLED: "the baseline, trained on shuffled labels: at chance, or test images leak",
    "identity": "no mixer: what the rest of the network does alone",
    "random": "frozen random mixing: what any exchange between positions gives",
    "outside": "a network of another family at the same budget: whether the recipe is sound",
}


def power(analysis: Analysis) -> Section:
    """What each comparison could have found."""
    smallest, rows = analysis.study.plan.smallest_effect, []
    for name in analysis.ranked:
        spread, reach = analysis.comparisons[name].difference.spread, analysis.reach(name)
        error, _ = spread.error()
        share = spread.test_set / error**2 if error else 0.0
        seeds = f"{reach.seeds}" if reach.seeds else "more test images"
        rows.append(
            Row([name, f"{spread.seeds}", f"{error:.2f}", f"{share:.0%}", f"{reach.smallest:.2f}", seeds])
        )
    columns = ("network", "seeds", "standard error", "of it the test set", "smallest detectable",
               f"seeds for {smallest:g} points")  # fmt: skip
    note = (
        f"In points. Detectable: claimed with probability {POWER:.0%} in the first step of Holm's correction, "
        "if seeds and test images vary as they did here. The test set's share of the variance is what no "
        "number of seeds lessens."
    )
    return Section("What this study can find", [Table(columns, rows)] if rows else [], note=note)


def threats(analysis: Analysis) -> list[str]:
    """What speaks against the findings: in this study, and in all of this form."""
    return [*_own_threats(analysis), *_GENERAL]


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
    if fewest < SEEDS["claim"]:
        yield f"{fewest} seeds are enough to look, not to claim: that takes {SEEDS['claim']}."
    if failed := [run.name for run in study.runs if run.error is not None]:
        yield f"{len(failed)} runs failed or were excluded; which ones may depend on the network: {', '.join(failed[:5])}."
    if edges := [arm.name for arm in analysis.networks if analysis.on_edge(arm)]:
        yield (
            "The best learning rate is the lowest or highest tried, so that a better one may lie beyond: "
            f"{', '.join(edges)}."
        )
    if plan.fewer_rates:
        yield f"{len(plan.learning_rates)} learning rates were tried: {plan.fewer_rates}."
    yield from _test_set_threats(analysis)
    if plan.budget.match == "none":
        yield "Networks have different budgets: a better mixer may simply cost more."
    comparison, chance = analysis.repeat, analysis.over_chance
    if comparison and comparison.verdict in ("better", "worse"):
        yield "The baseline differs from itself with other seeds: by chance, once in twenty studies, or by a fault."
    if chance and chance.low > 0:
        yield "Networks trained on shuffled labels are above chance: test images may be among those of training."


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


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def _interval(found: Estimate) -> str:
    return f"{signed(found.low)} to {signed(found.high)}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _what_it_takes(analysis: Analysis, name: str) -> str:
    reach, smallest = analysis.reach(name), analysis.study.plan.smallest_effect
    if reach.seeds is None:
        return f"To find {smallest:g} points it takes more test images, whatever the seeds."
    have = analysis.comparisons[name].difference.spread.seeds
    if reach.seeds <= have:
        return f"Its {have} seeds would have found {smallest:g} points with probability {POWER:.0%}."
    return f"To find {smallest:g} points with probability {POWER:.0%} it takes {reach.seeds} seeds instead of {have}."


def _effect(name: str, comparison: Comparison) -> Effect:
    found = comparison.difference
    return Effect(name, found.value, found.low, found.high, _TONES[comparison.verdict])  # type: ignore[arg-type]


def _comparison_table(analysis: Analysis) -> Table:
    columns = ("network", "accuracy", "seeds", "difference", "95 % interval", "P(A > B)", "p (Holm)",
               "p of equivalence", "verdict")  # fmt: skip
    rows = []
    for name in analysis.ranked:
        one = analysis.comparisons[name]
        cells = [signed(one.difference.value), _interval(one.difference)]
        cells.append(f"{one.wins:.2f} ({one.wins_low:.2f} to {one.wins_high:.2f})")
        cells += [_p(value).removeprefix("p ").removeprefix("= ") for value in (one.p, one.p_equivalent)]
        rows.append(Row([*_accuracy_cells(analysis, name), *cells, one.verdict]))
    baseline = analysis.study.plan.baseline
    if baseline in analysis.accuracy:
        rows.append(Row([*_accuracy_cells(analysis, baseline), *["–"] * 5, "baseline"]))
    return Table(columns, rows)


def _accuracy_cells(analysis: Analysis, name: str) -> list[str]:
    found = analysis.accuracy[name]
    return [name, f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})", f"{found.spread.seeds}"]


def _accuracies(analysis: Analysis, name: str) -> list[float]:
    return [100 * float(found.mean()) for found in analysis.correct[name].values()]


def _is_network(arm: Arm) -> bool:
    """Whether an arm is a network of its own, not the baseline again."""
    return arm.control not in (REPEAT, SHUFFLED)


def _cost_rows(arm: Arm) -> Iterator[list[str]]:
    changed = "; ".join(arm.changed) or "–"
    for cost in sorted(arm.costs, key=lambda cost: cost.image_size):
        times = (f"{value:.2f}" if value else "–" for value in (cost.latency_1, cost.latency_8))
        memory = (
            f"{value / 2**20:,.1f}" if value else "–"
            for value in (cost.inference_memory, cost.training_memory)
        )
        yield [
            arm.name,
            changed,
            f"{cost.image_size}",
            f"{arm.parameters:,}",
            f"{cost.macs:,}",
            *times,
            *memory,
        ]
    if not arm.costs:
        yield [arm.name, changed, "–", f"{arm.parameters:,}", *["–"] * 5]


def _edge_note(analysis: Analysis, arm: Arm) -> str:
    return "on the edge of those tried" if analysis.on_edge(arm) else ""


def _squares(analysis: Analysis, arm: Arm) -> str:
    sides: dict[float, list[int]] = {}
    for mechanism in analysis.study.mechanisms:
        for square in mechanism.squares if mechanism.arm == arm.name else ():
            sides.setdefault(square.share, []).append(square.side)
    return ", ".join(f"{share:.0%} in {np.mean(found):.0f} px" for share, found in sorted(sides.items()))


def _curves(
    analysis: Analysis, title: str, x_label: str, arms: dict[str, dict[float, list[float]]]
) -> Figure:
    """Means by level, of each network a line in its own color."""
    lines = [
        Line(
            arm.name,
            [(level, float(np.mean(values))) for level, values in sorted(arms.get(arm.name, {}).items())],
            True,
        )
        for arm in analysis.networks
    ]
    return Figure(title, [line.name for line in lines], line_chart(lines, x_label, label=title))


def _control_outcome(analysis: Analysis, arm: Arm) -> tuple[str, str]:
    """What a control found, and whether that is as it should be."""
    comparison = analysis.repeat if arm.control == REPEAT else analysis.comparisons.get(arm.name)
    if arm.control == SHUFFLED:
        found = analysis.over_chance
        if found is None:
            return "–", "not run yet"
        outcome = (
            "at chance"
            if found.low <= 0 <= found.high
            else "above chance"
            if found.low > 0
            else "below chance"
        )
        return f"{signed(found.value)} points to chance ({_interval(found)})", outcome
    if comparison is None:
        return "–", "not run yet"
    shown = f"{signed(comparison.difference.value)} points ({_interval(comparison.difference)})"
    if arm.control == REPEAT:
        return shown, "fails" if comparison.verdict in ("better", "worse") else "holds"
    return shown, comparison.verdict


def _run_link(run: RunResult) -> Link:
    return Link(run.name, quote(f"runs/{run.name}/"))
