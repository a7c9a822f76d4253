"""Sections of a study's report on what was measured beside accuracy: costs, tuning, robustness."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

from metaformer.report.blocks import (
    Block,
    Example,
    Examples,
    Figure,
    Figures,
    Listing,
    Row,
    Section,
    Table,
    data_uri,
)
from metaformer.report.chart import Line, Point, line_chart, scatter_chart
from metaformer.study.analysis import REPEAT, SHUFFLED, Analysis, sweep_means
from metaformer.study.results import Arm, PerturbationKind
from metaformer.study.sections.findings import TIED
from metaformer.visualize.heat import color_map

Levels = dict[str, dict[float, list[float]]]
"""Accuracies of several seeds, by network and level."""
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
    columns = ("network", "changed to fit", "of the budget", "parameters", "image size", "MACs",
               "ms, batch 1", "ms, batch 8", "MB, forward", "MB, training")  # fmt: skip
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


def receptive_fields(analysis: Analysis) -> Section:
    """Effective receptive fields, mean over the seeds that were measured."""
    study, examples = analysis.study, []
    for arm in study.arms:
        measured = [one for one in study.field_sizes if one.arm == arm.name]
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
    """Accuracy on perturbed test images, mean over seeds, and for corruptions over their names."""
    kinds: dict[PerturbationKind, Levels] = {}
    corruptions: dict[str, dict[str, list[float]]] = {}
    for measured in analysis.study.robustness:
        for one in measured.accuracies:
            levels = kinds.setdefault(one.kind, {}).setdefault(measured.arm, {})
            levels.setdefault(one.level, []).append(one.accuracy)
            if one.kind == "corruption":
                corruptions.setdefault(one.name, {}).setdefault(measured.arm, []).append(one.accuracy)
    if not kinds:
        return Section("Robustness", [])
    charts = {f"Accuracy by {kind}": (_UNITS[kind], found) for kind, found in kinds.items()}
    blocks: list[Block] = [_curves(analysis, charts)]
    if corruptions:
        names = _measured(analysis, kinds["corruption"])
        rows = [
            Row([corruption, *(f"{np.mean(arms[n]):.1f}" if n in arms else "–" for n in names)])
            for corruption, arms in corruptions.items()
        ]
        blocks.append(Table(("corruption", *names), rows))
    note = (
        "Accuracy in percent on perturbed test images, mean over seeds; of corruptions in the table also "
        "over severities."
    )
    return Section("Robustness", blocks, note=note)


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


def _is_network(arm: Arm) -> bool:
    """Whether an arm is a network of its own, not the baseline again."""
    return arm.control not in (REPEAT, SHUFFLED)


def _cost_rows(arm: Arm) -> Iterator[list[str]]:
    changed = "; ".join(arm.changed).replace(", ", f",{TIED}")
    budget = "–" if arm.relative_cost is None else f"{arm.relative_cost:.1%}"
    head = [arm.name, changed or "–", budget, f"{arm.parameters:,}"]
    for cost in sorted(arm.costs, key=lambda cost: cost.image_size):
        times = (f"{value:.2f}" if value else "–" for value in (cost.latency_1, cost.latency_8))
        memory = (
            f"{value / 2**20:,.1f}" if value else "–"
            for value in (cost.inference_memory, cost.training_memory)
        )
        yield [*head, f"{cost.image_size}", f"{cost.macs:,}", *times, *memory]
        head = [""] * len(head)
    if not arm.costs:
        yield [*head, *["–"] * 6]


def _squares(analysis: Analysis, arm: Arm) -> str:
    sides: dict[float, list[int]] = {}
    for measured in analysis.study.field_sizes:
        for square in measured.squares if measured.arm == arm.name else ():
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
