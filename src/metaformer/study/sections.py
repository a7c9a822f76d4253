"""Sections of a study's report: sentences from verdicts, tables and charts."""

from collections.abc import Iterator
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
from metaformer.report.chart import (
    Effect,
    Line,
    Point,
    Tone,
    dot_chart,
    forest_chart,
    line_chart,
    scatter_chart,
)
from metaformer.report.page import Tile
from metaformer.study.analysis import REPEAT, SHUFFLED, Analysis, sweep_means
from metaformer.study.plan import SEEDS
from metaformer.study.results import Arm, RunResult
from metaformer.study.statistics import LEVEL, MOST_SEEDS, POWER, Comparison, Estimate, Verdict
from metaformer.visualize.heat import color_map

Levels = dict[str, dict[float, list[float]]]
"""Accuracies of several seeds, by network and level."""
FEW_CLUSTERS: Final = 20
"""Clusters of test images below which an interval is rough."""
FIELD: Final = 168
"""Pixels of a drawn receptive field, at least."""
_UNITS: Final = {
    "shift": "pixels", "rotation": "degrees", "size": "side in pixels", "corruption": "severity",
}  # fmt: skip
_COSTS: Final = {
    ("parameters", "millions"): ("parameters", 1e6),
    ("multiply-accumulates", "millions"): ("macs", 1e6),
    ("latency", "milliseconds, one image"): ("latency_1", 1),
    ("memory", "MB, training step of eight images"): ("training_memory", 2**20),
}
"""Fields of an arm or its costs, and divisors, by title and unit of their charts."""
_TIED: Final = "\u00a0"
"""Space at which no line ends."""
_TONES: Final[dict[Verdict, Tone]] = {
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
    compared = [arm.name for arm in study.arms if arm.control != SHUFFLED]
    seeds = [len(analysis.correct.get(name, ())) for name in compared]
    images = len(study.test_set.images)
    found = [
        (str(len(study.plan.mixers)), "mixers"),
        (" to ".join(map(str, sorted({min(seeds), max(seeds)}))), "seeds each"),
        (f"{images:,}", "test images" + (f" in {clusters:,} groups" if clusters < images else "")),
        (f"±{study.plan.smallest_effect:g}", "points, smallest effect of interest"),
    ]
    failed = sum(run.error is not None for run in study.runs)
    return [*found, (f"{failed} of {len(study.runs)}", "runs failed or excluded")]


def findings(analysis: Analysis) -> Section:
    """Verdicts as sentences, effects and seeds as charts, and all figures of the comparisons."""
    study = analysis.study
    mixers_first = sorted(analysis.ranked, key=lambda name: study.arm(name).control is not None)
    sentences = [verdict_sentence(analysis, name) for name in mixers_first]
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
    figures = f"{signed(found.value)} points (95{_TIED}% interval {_interval(found)}, p{_TIED}"
    differs = f"{figures}{_p(comparison.p, equals=f'={_TIED}')})."
    if comparison.verdict == "equivalent":
        p = _p(comparison.p_equivalent, equals=f"={_TIED}")
        return (
            f"{name} and {plan.baseline} are equivalent within ±{smallest:g} points: {figures}{p} for a "
            "difference that large)."
        )
    if comparison.verdict == "unresolved":
        return f"{name} against {plan.baseline} is unresolved: {differs} {_what_it_takes(analysis, name)}"
    sentence = f"{name} is {comparison.verdict} than {plan.baseline}: {differs}"
    if min(abs(found.low), abs(found.high)) < smallest:
        sentence += f" Whether by the smallest effect of interest, {smallest:g} points, is open."
    return sentence


def costs(analysis: Analysis) -> Section:
    """Accuracy against costs, and all costs by image size."""
    study, figures = analysis.study, []
    for (title, unit), (name, divisor) in _COSTS.items():
        points = [
            Point(arm.name, cost / divisor, analysis.accuracy[arm.name].value, arm.control is not None)
            for arm in study.arms
            if _is_network(arm) and arm.name in analysis.accuracy
            if (cost := arm.parameters if name == "parameters" else getattr(analysis.cost(arm), name, None))
        ]
        if points:
            title = f"Accuracy against {title}"
            figures.append(Figure(title, [], scatter_chart(points, unit, label=title)))
    columns = ("network", "changed to fit", "parameters", "image size", "MACs", "ms, batch 1", "ms, batch 8",
               "MB, forward", "MB, training")  # fmt: skip
    rows = [Row(cells) for arm in study.arms if _is_network(arm) for cells in _cost_rows(arm)]
    device, threads, pytorch = (study.machine.get(name) for name in ("device", "threads", "pytorch"))
    note = (
        "Dashed: the Pareto front of the mixers; gray: controls. Measured on "
        f"{device}, {threads} threads, PyTorch {pytorch}."
    )
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
        Row(
            [arm.name, f"{arm.learning_rate:g}" if arm.learning_rate else "–", "edge" * analysis.on_edge(arm)]
        )
        for arm in analysis.networks
    ]
    figure = Figure("Validation accuracy in percent", [], chart)
    note = (
        "Mean over the seeds of the tuning, which are not used again; a ring marks the choice. A flat curve "
        "owes little to tuning; beyond the edge of what was tried a better rate may lie."
    )
    table = Table(("network", "chosen", ""), rows, left=1)
    return Section("Learning rates", [Figures([figure], [line.name for line in lines])], [table], note=note)


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
            image = color_map(np.mean(fields, axis=0))
            times = -(-FIELD // min(image.size))
            large = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
            examples.append(Example({"field": data_uri(large)}, arm.name, _squares(analysis, arm)))
    note = (
        "How much the center of the last features depends on each pixel: the size of the gradient, on a "
        "logarithmic scale."
    )
    return Section("Effective receptive fields", [Examples("", examples)] if examples else [], note=note)


def robustness(analysis: Analysis) -> Section:
    """Accuracy on changed test images, mean over seeds, and for corruptions over their kinds."""
    probes: dict[str, Levels] = {}
    kinds: dict[str, dict[str, list[float]]] = {}
    for mechanism in analysis.study.mechanisms:
        for one in mechanism.robustness:
            levels = probes.setdefault(one.probe, {}).setdefault(mechanism.arm, {})
            levels.setdefault(one.level, []).append(one.accuracy)
            if one.probe == "corruption":
                kinds.setdefault(one.change, {}).setdefault(mechanism.arm, []).append(one.accuracy)
    if not probes:
        return Section("Changed images", [])
    blocks: list[Block] = [
        _curves(analysis, {f"Accuracy by {probe}": (_UNITS[probe], found) for probe, found in probes.items()})
    ]
    if kinds:
        names = _measured(analysis, probes["corruption"])
        rows = [
            Row([kind, *(f"{np.mean(arms[n]):.1f}" if n in arms else "–" for n in names)])
            for kind, arms in kinds.items()
        ]
        blocks.append(Table(("corruption", *names), rows))
    note = "Accuracy in percent, mean over seeds; of corruptions in the table also over severities."
    return Section("Changed images", blocks, note=note)


def diagnostics(analysis: Analysis) -> Section:
    """Accuracy on synthetic tasks by what they demand."""
    tasks: dict[str, Levels] = {}
    chances: dict[str, set[float]] = {}
    for one in analysis.study.diagnostics:
        if one.accuracy is not None:
            levels = tasks.setdefault(one.task, {}).setdefault(one.arm, {})
            levels.setdefault(float(one.demand), []).append(one.accuracy)
            chances.setdefault(one.task, set()).add(one.chance)
    if not tasks:
        return Section("Diagnostic tasks", [])
    charts = _curves(analysis, {task.replace("_", " "): ("demand", found) for task, found in tasks.items()})
    chance = "; ".join(
        f"{task.replace('_', ' ')} {' to '.join(f'{c:.1f}' for c in sorted({min(found), max(found)}))} %"
        for task, found in chances.items()
    )
    note = (
        "Accuracy in percent on small tasks of known demand, mean over seeds; a line ends where its network "
        f"takes no such size. Chance: {chance}."
    )
    return Section("Diagnostic tasks", [charts], note=note)


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
    note = (
        f"Test accuracy in percent; trained {analysis.study.plan.baseline} networks, their mixers replaced."
    )
    return Section("Transfer", [Table(columns, rows), Listing(failed)] if transfers else [], note=note)


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
    "outside": "a network of another family at the same budget: whether the recipe is sound",
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
               f"seeds for {_points(smallest)}")  # fmt: skip
    note = (
        f"In points. Detectable: claimed with probability {POWER:.0%} in Holm's first step "
        "if seeds and test images vary as they did here; none where not even 100 points would be. The test "
        "set's share of the variance is what no number of seeds lessens."
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
    if fewest < len(plan.seeds):
        yield (
            f"Some networks have {fewest} of the {len(plan.seeds)} planned seeds. To stop or go on because "
            "of what is seen makes false claims likelier."
        )
    if fewest < SEEDS["confirm"]:
        yield f"{fewest} seeds: it takes {SEEDS['look']} to look and {SEEDS['confirm']} to confirm."
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


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def _interval(found: Estimate) -> str:
    return f"{signed(found.low)} to {signed(found.high)}".replace(" ", _TIED)


def _p(value: float, equals: str = "") -> str:
    return f"<{_TIED}0.001" if value < 0.001 else f"{equals}{value:.3f}"


def _what_it_takes(analysis: Analysis, name: str) -> str:
    reach, smallest = analysis.reach[name], _points(analysis.study.plan.smallest_effect)
    if reach.too_few_images:
        return f"To find {smallest} it takes more test images, whatever the seeds."
    have = analysis.comparisons[name].difference.spread.seeds
    if reach.seeds is not None and reach.seeds <= have:
        return f"Its {have} seeds would have found {smallest} with probability {POWER:.0%}."
    needed = reach.seeds or f"more than {MOST_SEEDS}"
    return f"To find {smallest} with probability {POWER:.0%} it takes {needed} seeds, not {have}."


def _points(value: float) -> str:
    return f"{value:g} point{'s' * (value != 1)}"


def _effect(name: str, comparison: Comparison) -> Effect:
    found = comparison.difference
    return Effect(name, found.value, found.low, found.high, _TONES[comparison.verdict])


def _comparison_table(analysis: Analysis) -> Table:
    columns = ("network", "accuracy", "seeds", "difference", "95 % interval", "P(A > B)", "p (Holm)",
               "p of equivalence", "verdict")  # fmt: skip
    rows = []
    for name in analysis.ranked:
        one = analysis.comparisons[name]
        cells = [signed(one.difference.value), _interval(one.difference)]
        cells.append(f"{one.wins:.2f} ({one.wins_low:.2f} to {one.wins_high:.2f})".replace(" ", _TIED))
        cells += [_p(one.p), _p(one.p_equivalent), one.verdict]
        rows.append(Row([*_accuracy_cells(analysis, name), f"{one.difference.spread.seeds}", *cells]))
    baseline = analysis.study.plan.baseline
    if baseline in analysis.accuracy:
        seeds = len(analysis.correct[baseline])
        rows.append(Row([*_accuracy_cells(analysis, baseline), f"{seeds}", *["–"] * 5, "baseline"]))
    return Table(columns, rows)


def _accuracy_cells(analysis: Analysis, name: str) -> list[str]:
    found = analysis.accuracy[name]
    return [name, f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})".replace(" ", _TIED)]


def _accuracies(analysis: Analysis, name: str) -> list[float]:
    return [100 * float(found.mean()) for found in analysis.correct[name].values()]


def _is_network(arm: Arm) -> bool:
    """Whether an arm is a network of its own, not the baseline again."""
    return arm.control not in (REPEAT, SHUFFLED)


def _cost_rows(arm: Arm) -> Iterator[list[str]]:
    changed = "; ".join(arm.changed).replace(", ", f",{_TIED}")
    head = [arm.name, changed or "–", f"{arm.parameters:,}"]
    for cost in sorted(arm.costs, key=lambda cost: cost.image_size):
        times = (f"{value:.2f}" if value else "–" for value in (cost.latency_1, cost.latency_8))
        memory = (
            f"{value / 2**20:,.1f}" if value else "–"
            for value in (cost.inference_memory, cost.training_memory)
        )
        yield [*head, f"{cost.image_size}", f"{cost.macs:,}", *times, *memory]
        head = ["", "", ""]
    if not arm.costs:
        yield [*head, *["–"] * 6]


def _squares(analysis: Analysis, arm: Arm) -> str:
    sides: dict[float, list[int]] = {}
    for mechanism in analysis.study.mechanisms:
        for square in mechanism.squares if mechanism.arm == arm.name else ():
            sides.setdefault(square.share, []).append(square.side)
    return ", ".join(f"{share:.0%} in {np.mean(found):.0f} px" for share, found in sorted(sides.items()))


def _curves(analysis: Analysis, charts: dict[str, tuple[str, Levels]]) -> Figures:
    """Charts of means by level, from their titles and x labels; each network is a line in its own color."""
    names = _measured(analysis, *(levels for _, levels in charts.values()))
    figures = []
    for title, (x_label, levels) in charts.items():
        means = {
            name: [(level, float(np.mean(values))) for level, values in sorted(found.items())]
            for name, found in levels.items()
        }
        lines = [Line(name, means.get(name, []), dots=True) for name in names]
        figures.append(Figure(title, [], line_chart(lines, x_label, label=title)))
    return Figures(figures, names)


def _measured(analysis: Analysis, *found: Levels) -> list[str]:
    """Networks up to the last that was measured: colors go by place."""
    names = [arm.name for arm in analysis.networks]
    while names and not any(names[-1] in levels for levels in found):
        names.pop()
    return names


def _control_outcome(analysis: Analysis, arm: Arm) -> tuple[str, str]:
    """What a control found, and whether that is as it should be."""
    comparison = analysis.comparison(arm)
    if arm.control == SHUFFLED:
        found = analysis.over_chance
        if found is None:
            return "–", "not run yet"
        side = "at" if found.low <= 0 <= found.high else "above" if found.low > 0 else "below"
        return f"{signed(found.value)} points over chance ({_interval(found)})", f"{side} chance"
    if comparison is None:
        return "–", "not run yet"
    shown = f"{signed(comparison.difference.value)} points ({_interval(comparison.difference)})"
    if arm.control == REPEAT:
        return shown, "fails" if comparison.verdict in ("better", "worse") else "holds"
    return shown, comparison.verdict


def _run_link(run: RunResult) -> Link:
    return Link(run.name, quote(f"runs/{run.name}/"))
