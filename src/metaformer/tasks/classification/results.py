"""Results of classification: predicted classes, and evaluation reports."""

from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from metaformer.tasks.classification.metrics import ClassAccuracy
from metaformer.tasks.outputs import DrawnResult, named_shares
from metaformer.tasks.report import Report, class_table, confusion_values
from metaformer.visualize.canvas import STRONG, WEAK, Bar, draw_bars

BARS = 3
"""Classes that are drawn below an image."""


@dataclass(frozen=True, repr=False)
class Classification(DrawnResult):
    """Top classes of one image."""

    path: str
    """The image file; empty for an image in memory."""
    labels: tuple[str, ...]
    """Class names, best first."""
    scores: tuple[float, ...]
    """Their probabilities."""
    indices: tuple[int, ...]
    """Their indices."""

    @property
    def label(self) -> str:
        """Name of the best class."""
        return self.labels[0]

    @property
    def score(self) -> float:
        """Probability of the best class."""
        return self.scores[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def to_response(self) -> dict[str, Any]:
        """Plain values for viewers: name, index and score of each class, best first."""
        rows = zip(self.labels, self.indices, self.scores, strict=True)
        return {"classes": [{"name": name, "index": k, "score": score} for name, k, score in rows]}

    def to_row(self) -> dict[str, str]:
        """CSV cells: path, label and score, then the further classes as `label_2`, `score_2` and so on."""
        row = {"path": self.path}
        for rank, (label, score) in enumerate(zip(self.labels, self.scores, strict=True), start=1):
            suffix = f"_{rank}" if rank > 1 else ""
            row |= {f"label{suffix}": label, f"score{suffix}": f"{score:.6f}"}
        return row

    def bars(self) -> list[Bar]:
        """What is drawn: the best classes, each with a bar for its probability."""
        pairs = zip(self.labels[:BARS], self.scores[:BARS], strict=True)
        return [Bar(label, score, WEAK if row else STRONG) for row, (label, score) in enumerate(pairs)]

    def _summary(self) -> str:
        return named_shares(zip(self.labels, self.scores, strict=True))

    def _draw(self, image: Image.Image) -> Image.Image:
        return draw_bars(image, self.bars())


@dataclass(frozen=True)
class Example:
    """An evaluated image in a report."""

    path: str
    label: str
    predicted: str
    score: float
    """Probability of the predicted class."""
    index: int = -1
    """Its index in the data set, if `path` is not a file."""

    @property
    def right(self) -> bool:
        """Whether the prediction is correct."""
        return self.label == self.predicted


@dataclass(frozen=True, repr=False)
class ClassificationReport(Report):
    """Evaluation of a classifier on a data set."""

    images: int
    top1: float
    """Top-1 accuracy."""
    top5: float
    """Top-k accuracy."""
    k: int
    """5, or the number of classes if smaller."""
    loss: float
    """Mean cross-entropy."""
    per_class: tuple[ClassAccuracy, ...]
    confusion: Tensor
    """Confusion matrix of images (K, K), int64: true class by row, predicted class by column."""
    real: float | None = None
    """Accuracy on ImageNet-ReaL; None without its labels."""
    real_images: int = 0
    """Images with ReaL labels."""
    examples: tuple[Example, ...] = field(default=(), repr=False)
    """The most confident mistakes, and some correct predictions."""

    @property
    def classes(self) -> list[str]:
        """Class names."""
        return [row.name for row in self.per_class]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by their names in logs."""
        figures = {"top1": self.top1, f"top{self.k}": self.top5, "loss": self.loss}
        return figures if self.real is None else {**figures, "real": self.real}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        table = [
            {**asdict(row), "accuracy": row.accuracy, "precision": row.precision} for row in self.per_class
        ]
        values: dict[str, Any] = {"images": self.images, **self.metrics, "per_class": table}
        values["examples"] = [asdict(example) for example in self.examples]
        if self.real is not None:
            values["real_images"] = self.real_images
        return {**values, **confusion_values(self.confusion)}

    def text(self, rows: int = 20) -> str:
        """Format the metrics and a table of the classes, weakest first."""
        lines = [
            f"images   {self.images}",
            f"top-1    {self.top1:.2%}",
            f"top-{self.k}    {self.top5:.2%}",
            f"loss     {self.loss:.4f}",
        ]
        if self.real is not None:
            lines.append(f"ReaL     {self.real:.2%} ({self.real_images} images)")
        weakest = sorted(self.per_class, key=lambda row: (row.accuracy, row.name))
        table = [
            (row.name, f"{row.images}", f"{row.correct}", f"{row.accuracy:.2%}", f"{row.precision:.2%}")
            for row in weakest
        ]
        columns = ("class", "images", "correct", "accuracy", "precision")
        return "\n".join([*lines, "", *class_table(columns, table, rows)])
