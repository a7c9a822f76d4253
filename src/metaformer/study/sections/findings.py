"""Sections of a study's report on what was found: verdicts as sentences, hypotheses, effects, classes."""

from math import isnan
from typing import Final

import numpy as np

from metaformer.report.blocks import Block, Figure, Figures, Listing, Row, Section, Table
from metaformer.report.chart import Effect, Tone, dot_chart, forest_chart
from metaformer.study.analysis import Analysis
from metaformer.study.statistics import LEVEL, MOST_SEEDS, POWER, Comparison, Estimate, Verdict

TIED: Final = "\u00a0"
"""Space at which no line ends."""
_TONES: Final[dict[Verdict, Tone]] = {
    "better": "good", "worse": "bad", "equivalent": "even", "unresolved": "open",
}  # fmt: skip


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
    blocks: list[Block] = [Listing(sentences), Figures(figures), _comparison_table(analysis)]
    return Section("Findings", [*blocks, *_hypotheses(analysis)], note=note)


def _hypotheses(analysis: Analysis) -> list[Block]:
    """What the plan expected, with what became of it."""
    expected, baseline = analysis.study.plan.hypotheses, analysis.study.plan.baseline
    rows = []
    for name, verdict in expected.items():
        claim = f"{name} is {verdict} {'to' if verdict == 'equivalent' else 'than'} {baseline}"
        rows.append(Row([claim, hypothesis_outcome(analysis, name)]))
    return [Table(("hypothesis, before the first run", "outcome"), rows, left=2)] if rows else []


def hypothesis_outcome(analysis: Analysis, name: str) -> str:
    """What became of the plan's hypothesis on a network."""
    comparison = analysis.comparisons.get(name)
    if comparison is None:
        return "not compared yet"
    if comparison.verdict == "unresolved":
        return "unresolved"
    return "confirmed" if comparison.verdict == analysis.study.plan.hypotheses[name] else "contradicted"


def verdict_sentence(analysis: Analysis, name: str) -> str:
    """What may be claimed of a network, with the figures that it rests on."""
    comparison, plan = analysis.comparisons[name], analysis.study.plan
    found, smallest = comparison.difference, plan.smallest_effect
    figures = f"{signed(found.value)} points (95{TIED}% interval {interval(found)}, p{TIED}"
    differs = f"{figures}{_p(comparison.p, equals=f'={TIED}')})."
    if comparison.verdict == "equivalent":
        p = _p(comparison.p_equivalent, equals=f"={TIED}")
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


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def interval(found: Estimate) -> str:
    return f"{signed(found.low)} to {signed(found.high)}".replace(" ", TIED)


def points(value: float) -> str:
    return f"{value:g} point{'s' * (value != 1)}"


def _p(value: float, equals: str = "") -> str:
    return f"<{TIED}0.001" if value < 0.001 else f"{equals}{value:.3f}"


def _what_it_takes(analysis: Analysis, name: str) -> str:
    reach, smallest = analysis.reach[name], points(analysis.study.plan.smallest_effect)
    if reach.too_few_images:
        return f"To find {smallest} it takes more test images, whatever the seeds."
    have = analysis.comparisons[name].difference.spread.seeds
    if reach.seeds is not None and reach.seeds <= have:
        return f"Its {have} seeds would have found {smallest} with probability {POWER:.0%}."
    needed = reach.seeds or f"more than {MOST_SEEDS}"
    return f"To find {smallest} with probability {POWER:.0%} it takes {needed} seeds, not {have}."


def _effect(name: str, comparison: Comparison) -> Effect:
    found = comparison.difference
    return Effect(name, found.value, found.low, found.high, _TONES[comparison.verdict])


def _comparison_table(analysis: Analysis) -> Table:
    columns = ("network", "accuracy", "seeds", "difference", "95 % interval", "P(A > B)", "p (Holm)",
               "p of equivalence", "verdict")  # fmt: skip
    rows = []
    for name in analysis.ranked:
        one = analysis.comparisons[name]
        cells = [signed(one.difference.value), interval(one.difference)]
        cells.append(f"{one.wins:.2f} ({one.wins_low:.2f} to {one.wins_high:.2f})".replace(" ", TIED))
        cells += [_p(one.p), _p(one.p_equivalent), one.verdict]
        rows.append(Row([*_accuracy_cells(analysis, name), f"{one.difference.spread.seeds}", *cells]))
    baseline = analysis.study.plan.baseline
    if baseline in analysis.accuracy:
        seeds = len(analysis.correct[baseline])
        rows.append(Row([*_accuracy_cells(analysis, baseline), f"{seeds}", *["–"] * 5, "baseline"]))
    return Table(columns, rows)


def _accuracy_cells(analysis: Analysis, name: str) -> list[str]:
    found = analysis.accuracy[name]
    return [name, f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})".replace(" ", TIED)]


def _accuracies(analysis: Analysis, name: str) -> list[float]:
    return [100 * float(found.mean()) for found in analysis.correct[name].values()]
