"""RUN/report.html: curves, pictures, confusions and settings of a run on one self-contained page."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from PIL import Image

from metaformer.data.image import read_image
from metaformer.data.split import Split, open_split
from metaformer.engine.chart import Line, line_chart
from metaformer.engine.checkpoint import Saved, read_checkpoint
from metaformer.engine.config import TrainConfig
from metaformer.engine.log import read_log
from metaformer.engine.run_dir import RunDir
from metaformer.engine.settings import from_dict, to_dict
from metaformer.engine.whole_file import whole_file
from metaformer.errors import MetaFormerError

THUMBNAIL = 128
"""Pixels of the larger side of a picture on the page."""
LARGEST_MATRIX = 30
"""Classes up to which the confusion matrix is drawn; beyond, a list of the commonest confusions."""
ROWS = 30
"""Rows of the class table and of the list of confusions."""
PICTURES = 12
"""Pictures of each kind."""

Log = list[dict[str, Any]]


def write_report(run: str | Path) -> Path:
    """Write the page of a run from its best checkpoint and its log.

    Raises:
        WeightsError: the run has no best checkpoint, or a damaged one.
        OutputError: the page cannot be written.
    """
    from jinja2 import Environment

    place = RunDir(Path(run))
    best, log = read_checkpoint(place.best), read_log(place.path)
    text = resources.files("metaformer.engine").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True).from_string(text).render(_content(place, best, log))
    file = place.path / "report.html"
    with whole_file(file) as stream:
        stream.write(page)
    return file


def _content(place: RunDir, best: Saved, log: Log) -> dict[str, Any]:
    state = best.state
    config, card, evaluation = from_dict(state["config"]), state["card"], state["evaluation"]
    look = card["preprocess"]
    classes = sorted(evaluation.get("per_class", []), key=lambda row: (row["accuracy"], row["name"]))
    return {
        "title": place.path.resolve().name,
        "subtitle": f"{card['name']} on {config.data.root}: {len(card['classes'])} classes, "
        f"{look['image_size']}×{look['image_size']} pixels",
        "figures": _figures(state, evaluation, log),
        "charts": _charts(log, state["metric"]),
        "groups": _pictures(evaluation.get("examples", []), config),
        "matrix": _matrix(evaluation),
        "confused": _confused(evaluation),
        "classes": [_row(row) for row in classes[:ROWS]],
        "left_out": max(0, len(classes) - ROWS),
        "best": place.best,
        "preprocess": f"{look['image_size']} pixels, crop {look['crop']}, {look['interpolation']}",
        "settings": _settings(config),
        "footer": f"metaformer {metadata.version('metaformer')} · seed {config.seed} · "
        f"processes {state['world_size']} · threads {state['threads']}",
    }


def _figures(state: dict[str, Any], evaluation: dict[str, Any], log: Log) -> list[tuple[str, str]]:
    figures = [
        (f"{value:.4f}" if name == "loss" else f"{value:.2%}", f"held-out {name}")
        for name, value in state["metrics"].items()
    ]
    rates = [line["images_per_second"] for line in log if "images_per_second" in line]
    if rates:
        figures.append((f"{sorted(rates)[len(rates) // 2]:,.0f}", "training images a second"))
    pictures = f"{evaluation['images']:,}"
    return [*figures, (pictures, "held-out pictures"), (f"{state['epoch']}", "epoch of the best weights")]


def _charts(log: Log, metric: str) -> list[tuple[str, list[str], Any]]:
    train = [line for line in log if line["kind"] == "train"]
    evals = [line for line in log if line["kind"] == "eval"]
    loss = [
        Line("training", [(line["step"], line["loss"]) for line in train]),
        Line("held out", [(line["step"], line["loss"]) for line in evals if "loss" in line], dots=True),
    ]
    scores = Line(metric, [(line["epoch"], line[metric]) for line in evals if metric in line], dots=True)
    rates = Line("learning rate", [(line["step"], line["lr"]) for line in train])
    return [
        (f"Held-out {metric}", [], line_chart([scores], "epoch", percent=True, label=metric)),
        ("Loss", [line.name for line in loss], line_chart(loss, "step", label="loss")),
        ("Learning rate", [], line_chart([rates], "step", label="learning rate")),
    ]


def _pictures(
    examples: Sequence[dict[str, Any]], config: TrainConfig
) -> list[tuple[str, list[dict[str, Any]]]]:
    data = _Data(config, any(not Path(example["path"]).is_file() for example in examples))
    wrong = [example for example in examples if example["label"] != example["predicted"]]
    right = [example for example in examples if example["label"] == example["predicted"]]
    groups = []
    for name, chosen in (("Surest mistakes", wrong), ("Right", _spread(right))):
        shown = [
            {**example, "source": source, "score": f"{example['score']:.0%}", "right": chosen is not wrong}
            for example in chosen[:PICTURES]
            if (source := data.thumbnail(example))
        ]
        if shown:
            groups.append((name, shown))
    return groups


def _spread(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reorder so that every class comes once before one comes twice."""
    seen: dict[str, int] = {}
    ranked = []
    for example in examples:
        seen[example["label"]] = seen.get(example["label"], 0) + 1
        ranked.append((seen[example["label"]], example))
    return [example for _, example in sorted(ranked, key=lambda pair: pair[0])]


class _Data:
    """The pictures of an evaluation: files, or what lies in shards."""

    def __init__(self, config: TrainConfig, shards: bool) -> None:
        self.split: Split | None = None
        if shards:
            with suppress(MetaFormerError):  # gone since the evaluation: a report needs no pictures
                self.split = open_split(config.data.root, config.data.val)

    def thumbnail(self, example: dict[str, Any]) -> str | None:
        """A picture as a data address; None where it is gone since the evaluation."""
        try:
            image = self._read(example["path"], example.get("index", -1))
        except MetaFormerError:
            return None
        if image is None:
            return None
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()

    def _read(self, path: str, index: int) -> Image.Image | None:
        if self.split is None or Path(path).is_file():
            return read_image(path)
        there = 0 <= index < len(self.split) and str(self.split.path(index)) == path
        return self.split.image(index) if there else None


def _matrix(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    counts = evaluation.get("confusion")
    if not counts or len(counts) > LARGEST_MATRIX:
        return None
    names = [row["name"] for row in evaluation["per_class"]]
    rows = []
    for name, line in zip(names, counts, strict=True):
        whole = max(sum(line), 1)
        cells = [
            {
                "count": count,
                "share": f"{max(0.08, count / whole) if count else 0.03:.2f}",
                "look": "zero" if not count else "strong" if count / whole > 0.5 else "",
            }
            for count in line
        ]
        rows.append((name, cells))
    return {"names": names, "rows": rows}


def _confused(evaluation: dict[str, Any]) -> list[tuple[str, str, int]]:
    names = [row["name"] for row in evaluation.get("per_class", [])]
    entries = evaluation.get("confusion_entries") or [
        (true, said, count)
        for true, line in enumerate(evaluation.get("confusion", []))
        for said, count in enumerate(line)
    ]
    wrong = [(count, names[true], names[said]) for true, said, count in entries if true != said and count]
    return [(true, said, count) for count, true, said in sorted(wrong, key=lambda w: (-w[0], w))[:ROWS]]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "accuracy": f"{row['accuracy']:.1%}", "precision": f"{row['precision']:.1%}"}


def _settings(config: TrainConfig) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Fields by section, each with its value and whether that is another than the default."""
    ours, default = to_dict(config), to_dict(TrainConfig())
    sections: dict[str, list[tuple[str, str, bool]]] = {"run": []}
    for name, value in ours.items():
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
