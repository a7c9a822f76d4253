"""Evaluation of classifiers: every image once, on any number of ranks."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.config import TrainConfig
from metaformer.data.class_lists import read_lines
from metaformer.data.dataset import Batch
from metaformer.data.divide import open_divided
from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.data.split import Split, open_split
from metaformer.distributed import all_gather_list, all_reduce_sum
from metaformer.errors import DataError
from metaformer.tasks.base import Forward, LoadedModel
from metaformer.tasks.classification.metrics import (
    ConfusionMatrix,
    RealAccuracy,
    TopKAccuracy,
    per_class,
    read_real_labels,
)
from metaformer.tasks.classification.results import ClassificationReport, Example
from metaformer.tasks.classifier import ClassifierEvaluation, ClassifierOptions

EXAMPLES = 24
"""Images in a report: this many mistakes, and correct predictions."""
NUMBER = re.compile(r"n?\d+")
"""A folder's name that names no class."""


class ClassificationEvaluation(ClassifierEvaluation):
    """Evaluation on a data set; `run` evaluates one network.

    Args:
        folder: the images.
        preprocess: preprocessing of the images.
        real_labels: JSON file of ImageNet-ReaL.
        class_subset: names of the classes to evaluate on; None for all.
        options: those of `ClassifierEvaluation`.
    """

    def __init__(
        self,
        folder: Split,
        preprocess: Preprocess,
        *,
        real_labels: str | Path | None = None,
        class_subset: Sequence[str] | None = None,
        **options: Unpack[ClassifierOptions],
    ) -> None:
        super().__init__(folder, preprocess, **options)
        classes = folder.classes
        self.subset = list(range(len(classes)))
        if class_subset is not None:
            self.subset = sorted({classes.index(name) for name in class_subset})
        self.names = [classes[i] for i in self.subset]
        self.accepted = read_real_labels(real_labels, folder.paths, len(classes)) if real_labels else None

    @torch.inference_mode()
    def run(self, forward: Forward) -> ClassificationReport:
        """Evaluate a network on all ranks.

        Raises:
            TrainingError: logits are not finite; the message names the image.
            Interrupted: `stop` was true on any rank.
        """
        results = _Results(self)
        for logits, batch in self.logits(forward):
            results.update(logits, batch)
        return results.report()


class _Results:
    """Metrics and examples of one evaluation, on this rank until `report`, in classes of the subset."""

    def __init__(self, evaluation: ClassificationEvaluation) -> None:
        self.evaluation = evaluation
        self.subset = torch.tensor(evaluation.subset)
        self.position = torch.full((len(evaluation.folder.classes),), -1)
        self.position[self.subset] = torch.arange(len(self.subset))
        self.k = min(5, len(self.subset))
        self.topk, self.confusion = TopKAccuracy((1, self.k)), ConfusionMatrix(len(self.subset))
        self.real = RealAccuracy(evaluation.accepted) if evaluation.accepted is not None else None
        self.loss = torch.zeros((), dtype=torch.float64)
        self.wrong: list[Example] = []
        self.right: list[Example] = []
        self.shown: Counter[str] = Counter()

    def update(self, logits: Tensor, batch: Batch) -> None:
        labels = self.position[batch.labels]
        counted = labels >= 0  # images of other classes are left out
        logits, labels, indices = logits[counted][:, self.subset], labels[counted], batch.indices[counted]
        if not len(labels):
            return
        predicted = logits.argmax(dim=1)
        self.topk.update(logits, labels)
        self.confusion.update(predicted, labels)
        if self.real is not None:
            self.real.update(self.subset[predicted], indices)
        self.loss += F.cross_entropy(logits.double(), labels, reduction="sum")
        self._add_examples(logits.softmax(dim=1).amax(dim=1), predicted, labels, indices)

    def _add_examples(self, scores: Tensor, predicted: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Keep the most confident mistakes, and some correct predictions of each class."""
        names, folder = self.evaluation.names, self.evaluation.folder
        share = -(-EXAMPLES // len(names))
        rows = (values.tolist() for values in (indices, labels, predicted, scores))
        for index, label, guess, score in zip(*rows, strict=True):
            name = names[label]
            example = Example(str(folder.path(index)), name, names[guess], score, index)
            if label != guess:
                self.wrong.append(example)
            elif self.shown[name] < share:
                self.shown[name] += 1
                self.right.append(example)
        self.wrong = _most_confident(self.wrong)

    def report(self) -> ClassificationReport:
        confusion, accuracy = self.confusion.result(), self.topk.result()
        images = int(confusion.sum())
        if not images:
            raise DataError(f"{self.evaluation.folder.folder}: no images of the classes to evaluate on")
        real, real_images = self.real.result() if self.real is not None else (None, 0)
        right = sorted(all_gather_list(self.right), key=lambda example: example.path)
        return ClassificationReport(
            images=images,
            top1=accuracy[1],
            top5=accuracy[self.k],
            k=self.k,
            loss=float(all_reduce_sum(self.loss)) / images,
            per_class=tuple(per_class(confusion, self.evaluation.names)),
            confusion=confusion,
            real=real,
            real_images=real_images,
            examples=(*_most_confident(all_gather_list(self.wrong)), *right[:EXAMPLES]),
        )


def _most_confident(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: (-example.score, example.path))[:EXAMPLES]


def build_evaluation(
    model: LoadedModel,
    data: str | Path | None,
    split: str | None,
    *,
    batch_size: int = 128,
    workers: int = 4,
    image_size: int | None = None,
    crop: float | None = None,
    interpolation: Literal["bicubic", "bilinear"] | None = None,
    flip: bool = False,
    crops: int = 1,
    real_labels: str | Path | None = None,
    class_subset: str | Path | None = None,
) -> ClassificationEvaluation:
    """The evaluation of a classifier on an image folder or shards.

    Args:
        model: what is evaluated.
        data: folder of the data set; None for the run's own.
        split: its sub-folder; None for the run's own, or `val`.
        batch_size: images at once, per device.
        workers: processes that read images, per device.
        image_size: height and width of the network's input, in pixels (default: the checkpoint's).
        crop: share of the resized image that the center crop keeps (default: the checkpoint's).
        interpolation: resampling (default: the checkpoint's).
        flip: average with the mirrored image.
        crops: 1 for the center crop, 5 to average it with the corners.
        real_labels: file of ReaL labels: a JSON list of the accepted classes of each image, in file order.
        class_subset: file of class names, one per line: only these count.

    Raises:
        ConfigError: a value out of range, no data, or another number of classes than the network has.
        DataError: the data set is not laid out as it should be.
    """
    model = model.with_preprocess(image_size=image_size, crop=crop, interpolation=interpolation)
    folder = open_evaluation_split(model, data, split, allow_missing=class_subset is not None)
    return ClassificationEvaluation(
        folder,
        model.preprocess,
        batch_size=batch_size,
        workers=workers,
        flip=flip,
        crops=crops,
        real_labels=real_labels,
        class_subset=read_class_subset(class_subset, folder.classes),
        pin_memory=model.device.type == "cuda",
    )


def open_evaluation_split(
    model: LoadedModel, data: str | Path | None, split: str | None, *, allow_missing: bool = False
) -> Split:
    """A split of a data set with the model's classes; `data` and `split` default to the run's own.

    Classes are matched by name. Folders that are numbers, or ImageNet's of WordNet, do not name the classes
    of a model that was not trained on them: then their order decides, which one line says.

    Raises:
        ConfigError: no data, or another number of classes than the network has.
        DataError: the data set is not laid out as it should be.
    """
    part = model.own_part(data, split, open_run_division)
    if part is not None:
        return part
    where, classes = model.location(data, split), model.classes
    if classes is not None and model.config is None:
        own = open_split(*where)
        if all(map(NUMBER.fullmatch, own.classes)) and set(own.classes).isdisjoint(classes):
            model.check_classes(own.classes, own.folder)
            model.log_order(own.folder, own.classes, "calls them otherwise")
            return own
    folder = open_split(*where, classes, allow_missing=allow_missing)
    model.check_classes(folder.classes, folder.folder)
    return folder


def open_run_division(config: TrainConfig) -> tuple[ImageFolder, ImageFolder] | None:
    """Training and held-out part of a run's data, where it divides them itself (`data.val_fraction`).

    Raises:
        ConfigError: an expression for groups that is none.
        DataError: another layout, or a class without an image in one of the parts.
    """
    data = config.data
    if data.val_fraction is None:
        return None
    return open_divided(data.root, data.train, data.val_fraction, config.seed, data.group)


def read_class_subset(path: str | Path | None, classes: Sequence[str]) -> list[str] | None:
    """Class names, one per line, each among these classes; no path gives None.

    Raises:
        DataError: the file cannot be read, is empty, or names a class that there is not.
    """
    if path is None:
        return None
    names = [line.strip() for line in read_lines(path) if line.strip()]
    strange = [name for name in names if name not in set(classes)]
    if strange or not names:
        what = f"{strange[0]!r} is no class of the data" if strange else "names no class"
        raise DataError(f"{path}: {what}; write one class name per line")
    return names
