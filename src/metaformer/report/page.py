"""Pages: the report of a run, whose frame is the same for every task, and galleries."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaformer.config import TrainConfig
from metaformer.report.blocks import Example, Figure, Section
from metaformer.report.chart import Line, line_chart, line_class
from metaformer.serialize import to_dict

Log = list[dict[str, Any]]
"""Lines of metrics.jsonl."""
Tile = tuple[str, str]
"""A number and what it is."""


@dataclass(frozen=True)
class TaskReport:
    """What a task's report puts on the page."""

    metrics: Mapping[str, str]
    """Titles of the metrics at the top, by name; the run's own metric is also charted."""
    counts: Mapping[str, int]
    """Sizes of the validation set, such as `images`."""
    sections: Sequence[Section]
    preprocess: str
    commands: str
    """Shell commands that use the checkpoint BEST."""
    python: str
    """The same in Python."""
    input_size: str = ""
    """Size of training images, for the subtitle."""


def render(
    report: TaskReport,
    state: Mapping[str, Any],
    config: TrainConfig,
    log: Log,
    best: Path,
    hidden: Collection[str],
    footer: str,
    samples: Sequence[Example] = (),
) -> str:
    """The page as HTML without scripts or links to other files.

    Args:
        report: what the task shows.
        state: of the best checkpoint.
        config: the run's configuration.
        log: the run's log.
        best: the best checkpoint.
        hidden: sections and dotted fields of the configuration that the task does not use.
        footer: last line.
        samples: training samples as they are augmented.
    """
    card, unit = state["card"], "epoch" if config.schedule.steps is None else "step"
    return _page(
        "page.html.jinja",
        subtitle=f"{card['name']} on {config.data.root}: {len(card['classes'])} classes{report.input_size}"
        + progress(state["total"], log),
        title=best.parent.resolve().name,
        report=report,
        tiles=tiles(report, state, log, unit),
        found=[line["note"] for line in log if line["kind"] == "auto"],
        notes=list(dict.fromkeys(line["note"] for line in log if line["kind"] == "data")),
        charts=charts(log, state["metric"], report.metrics[state["metric"]], unit),
        usage=[text.replace("BEST", str(best)) for text in (report.commands, report.python)],
        best=best,
        settings=settings(config, hidden),
        footer=footer,
        cost=cost(state, config, log),
        samples=samples,
        mixed=max(config.augment.mixup, config.augment.cutmix) > 0,
    )


def render_gallery(
    title: str, subtitle: str, sections: Sequence[Section], footer: str, tiles: Sequence[Tile] = ()
) -> str:
    """A page of sections below tiles, as HTML without scripts."""
    content = {"title": title, "subtitle": subtitle, "sections": sections, "footer": footer, "tiles": tiles}
    return _page("gallery.html.jinja", **content)


def _page(template: str, **content: Any) -> str:
    from jinja2 import Environment, PackageLoader

    pages = Environment(loader=PackageLoader("metaformer", "report"), autoescape=True, trim_blocks=True)
    pages.globals["line_class"] = line_class
    return pages.get_template(template).render(**content)


def progress(total: int, log: Log) -> str:
    """How far the run had come when the page was written; empty where it was done."""
    step = max((line["step"] for line in log), default=0)
    return "" if step >= total else f"; step {step:,} of {total:,}"


def cost(state: Mapping[str, Any], config: TrainConfig, log: Log) -> str:
    """What the run took: time of its steps, throughput, memory and device; empty where nothing is logged."""
    seconds, done, memory = 0.0, 0, 0.0
    for line in log:
        if line["kind"] == "train" and line.get("images_per_second"):
            steps, done = line["step"] - done, line["step"]
            seconds += steps * config.data.step_images / line["images_per_second"]
            memory = max(memory, line.get("memory_gb", 0.0))
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    time = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
    parts = [f"{time} for {done:,} steps, without evaluation"]
    parts.append(f"{done * config.data.step_images / seconds:,.3g} images per second")
    if memory:
        parts.append(f"{memory:.1f} GB of memory at most")
    where = state.get("device", "")
    many = state.get("world_size", 1)
    return ", ".join(parts) + (f", on {f'{many} × ' if many > 1 else ''}{where}" if where else "")


def tiles(report: TaskReport, state: Mapping[str, Any], log: Log, unit: str) -> list[Tile]:
    """The numbers at the top: metrics, throughput, validation data, and when the best weights were."""
    metrics = [
        (f"{value:.4f}" if name == "loss" else f"{value:.2%}", f"validation {report.metrics[name]}")
        for name, value in state["metrics"].items()
        if name in report.metrics
    ]
    rates = sorted(line["images_per_second"] for line in log if "images_per_second" in line)
    throughput = [(f"{rates[len(rates) // 2]:,.0f}", "training images per second")] if rates else []
    counts = [(f"{count:,}", f"validation {name}") for name, count in report.counts.items()]
    return [*metrics, *throughput, *counts, (f"{state[unit]:,}", f"{unit} of the best weights")]


def charts(log: Log, metric: str, title: str, unit: str) -> list[Figure]:
    """Validation metric over epochs or steps, losses, and learning rate."""
    train = [line for line in log if line["kind"] == "train"]
    evals = [line for line in log if line["kind"] == "eval"]
    losses = [Line("training", [(line["step"], line["loss"]) for line in train])]
    if validation := [(line["step"], line["loss"]) for line in evals if "loss" in line]:
        losses.append(Line("validation", validation, dots=True))
    scores = Line(title, [(line[unit], line[metric]) for line in evals if metric in line], dots=True)
    rates = Line("learning rate", [(line["step"], line["lr"]) for line in train])
    key = [line.name for line in losses] if len(losses) > 1 else []
    return [
        Figure(f"Validation {title}", [], line_chart([scores], unit, percent=True, label=title)),
        Figure("Loss", key, line_chart(losses, "step", label="loss")),
        Figure("Learning rate", [], line_chart([rates], "step", label="learning rate")),
    ]


def settings(
    config: TrainConfig, hidden: Collection[str] = ()
) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Fields by section: name, value, whether it differs from the default; without `hidden` ones."""
    values, default = to_dict(config), to_dict(TrainConfig())
    sections: dict[str, list[tuple[str, str, bool]]] = {"run": []}
    for name, value in values.items():
        if name in hidden:
            continue
        if isinstance(value, dict):
            shown = {key: v for key, v in value.items() if f"{name}.{key}" not in hidden}
            sections[name] = [(key, _text(v), v != default[name][key]) for key, v in shown.items()]
        else:
            sections["run"].append((name, _text(value), value != default[name]))
    return list(sections.items())


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
