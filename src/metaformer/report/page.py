"""Pieces of a run's page: charts, images, settings."""

import base64
import io
from collections.abc import Collection, Sequence
from typing import Any

from PIL import Image

from metaformer.config import TrainConfig
from metaformer.report.chart import Line, line_chart
from metaformer.serialize import to_dict

Log = list[dict[str, Any]]
Chart = tuple[str, list[str], Any]
"""Its title, the names of its lines where there are several, and its drawing."""


def charts(log: Log, metric: str, title: str, by: str = "epoch") -> list[Chart]:
    """The figure by which the best weights are chosen, the losses, and the learning rate.

    Args:
        log: lines of metrics.jsonl.
        metric: what the log calls the figure.
        title: what people call it.
        by: what it is drawn over, `epoch` or `step`.
    """
    train = [line for line in log if line["kind"] == "train"]
    evals = [line for line in log if line["kind"] == "eval"]
    held_out = [(line["step"], line["loss"]) for line in evals if "loss" in line]
    loss = [Line("training", [(line["step"], line["loss"]) for line in train])]
    loss += [Line("held out", held_out, dots=True)] if held_out else []
    scores = Line(title, [(line[by], line[metric]) for line in evals if metric in line], dots=True)
    rates = Line("learning rate", [(line["step"], line["lr"]) for line in train])
    names = [line.name for line in loss] if len(loss) > 1 else []
    return [
        (f"Held-out {title}", [], line_chart([scores], by, percent=True, label=title)),
        ("Loss", names, line_chart(loss, "step", label="loss")),
        ("Learning rate", [], line_chart([rates], "step", label="learning rate")),
    ]


def rate(log: Log) -> list[tuple[str, str]]:
    """The middle one of the logged training rates, as a figure; none of a log without any."""
    rates = [line["images_per_second"] for line in log if "images_per_second" in line]
    return [(f"{sorted(rates)[len(rates) // 2]:,.0f}", "training images a second")] if rates else []


def address(image: Image.Image, quality: int = 88) -> str:
    """An image as a data address, which needs no file beside the page."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def rgb(color: Sequence[int]) -> str:
    """A color as the page's style wants it."""
    return f"rgb({color[0]} {color[1]} {color[2]})"


def settings(
    config: TrainConfig, hidden: Collection[str] = ()
) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Fields of a run by section, each with its value and whether that is another than the default.

    Args:
        config: the run.
        hidden: sections that are for other tasks.
    """
    ours, default = to_dict(config), to_dict(TrainConfig())
    sections: dict[str, list[tuple[str, str, bool]]] = {"run": []}
    for name, value in ours.items():
        if name in hidden:
            continue
        if isinstance(value, dict):
            sections[name] = [(key, _shown(v), v != default[name][key]) for key, v in value.items()]
        else:
            sections["run"].append((name, _shown(value), value != default[name]))
    return list(sections.items())


def _shown(value: Any) -> str:
    if value is None or value == {}:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
