"""Results of multi-label classification: predictions, and the report of an evaluation."""

from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from metaformer.report.blocks import percentage
from metaformer.tasks.outputs import DrawnResult, named_shares
from metaformer.tasks.report import Report, class_table
from metaformer.visualize.canvas import STRONG, WEAK, Bar, draw_bars

BARS = 6
"""Classes that are drawn below an image, or as many as are predicted."""


@dataclass(frozen=True, repr=False)
class MultilabelResult(DrawnResult):
    """The classes of one image."""

    path: str
    """Image file; empty for an image in memory."""
    classes: tuple[str, ...]
    """Names of all K classes."""
    scores: tuple[float, ...]
    """Probability of each."""
    thresholds: tuple[float, ...]
    """Score from which on each is predicted."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the predicted classes, most probable first."""
        rows = zip(self.classes, self.scores, self.thresholds, strict=True)
        predicted = [(score, name) for name, score, threshold in rows if score >= threshold]
        return tuple(name for _, name in sorted(predicted, key=lambda row: -row[0]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        scores = {name: round(score, 6) for name, score in zip(self.classes, self.scores, strict=True)}
        return {"path": self.path, "labels": list(self.labels), "scores": scores}

    def to_response(self) -> dict[str, Any]:
        """Plain values for viewers: name, index, score and threshold of every class, best first."""
        rows = enumerate(zip(self.classes, self.scores, self.thresholds, strict=True))
        classes = [
            {"name": name, "index": k, "score": score, "threshold": threshold}
            for k, (name, score, threshold) in rows
        ]
        return {"classes": sorted(classes, key=lambda row: -float(row["score"]))}

    def to_row(self) -> dict[str, str]:
        """CSV cells: path, labels, and the score of each class; semicolons between labels with spaces."""
        separator = ";" if any(" " in name for name in self.classes) else " "
        scores = {
            f"score {name}" if name in ("path", "labels") else name: f"{score:.6f}"
            for name, score in zip(self.classes, self.scores, strict=True)
        }
        return {"path": self.path, "labels": separator.join(self.labels), **scores}

    def bars(self) -> list[Bar]:
        """What is drawn: the predicted classes and the most probable others, each with its threshold."""
        bars = [
            Bar(name, score, STRONG if score >= threshold else WEAK, threshold)
            for name, score, threshold in zip(self.classes, self.scores, self.thresholds, strict=True)
        ]
        bars.sort(key=lambda bar: (bar.color is not STRONG, -bar.share))
        return bars[: max(BARS, len(self.labels))]

    def _summary(self) -> str:
        scores = dict(zip(self.classes, self.scores, strict=True))
        return named_shares((name, scores[name]) for name in self.labels) or "no class"

    def _draw(self, image: Image.Image) -> Image.Image:
        return draw_bars(image, self.bars())


@dataclass(frozen=True)
class ClassScore:
    """Figures of one class."""

    name: str
    images: int
    """Images that have it."""
    ap: float | None
    """Average precision; None where no image has it."""
    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class MultilabelExample:
    """One evaluated image, for the report."""

    path: str
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    loss: float
    """Mean binary cross-entropy over the classes."""


@dataclass(frozen=True, repr=False)
class MultilabelReport(Report):
    """Result of evaluating a multi-label classifier; every image counts once."""

    images: int
    map: float
    """Mean over the classes that some image has of the average precision."""
    f1_micro: float
    """F1 over all pairs of an image and a class."""
    f1_macro: float
    """Mean over the classes that some image has of F1."""
    loss: float
    """Mean binary cross-entropy."""
    per_class: tuple[ClassScore, ...]
    examples: tuple[MultilabelExample, ...] = field(default=(), repr=False)
    """The images with the highest loss, and some without an error."""

    @property
    def classes(self) -> list[str]:
        """Class names in order."""
        return [row.name for row in self.per_class]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The threshold of each class that F1 was measured with."""
        return tuple(row.threshold for row in self.per_class)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that a log holds."""
        return {"map": self.map, "f1_micro": self.f1_micro, "f1_macro": self.f1_macro, "loss": self.loss}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "images": self.images,
            **self.metrics,
            "per_class": [asdict(row) for row in self.per_class],
            "examples": [asdict(example) for example in self.examples],
        }

    def text(self, rows: int = 20) -> str:
        """The figures and the table of classes, weakest first."""
        weakest = sorted(self.per_class, key=lambda row: (row.ap is None, row.ap or 0.0, row.name))
        lines = [
            f"images    {self.images}",
            f"mAP       {self.map:.2%}",
            f"F1 micro  {self.f1_micro:.2%}",
            f"F1 macro  {self.f1_macro:.2%}",
            f"loss      {self.loss:.4f}",
            "",
        ]
        table = [
            (
                row.name,
                f"{row.images:,}",
                *(percentage(share) for share in (row.ap, row.f1, row.precision, row.recall)),
                f"{row.threshold:.3f}",
            )
            for row in weakest
        ]
        columns = ("class", "images", "AP", "F1", "precision", "recall", "threshold")
        return "\n".join([*lines, *class_table(columns, table, rows)])
