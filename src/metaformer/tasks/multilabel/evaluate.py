"""Evaluation of multi-label classifiers."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.data.preprocess import Preprocess
from metaformer.distributed import all_gather_object
from metaformer.errors import ConfigError
from metaformer.tasks.base import Forward, LoadedModel
from metaformer.tasks.classifier import ClassifierEvaluation, ClassifierOptions
from metaformer.tasks.multilabel.dataset import MultilabelFolder, open_multilabel, open_parts
from metaformer.tasks.multilabel.formats import Layout
from metaformer.tasks.multilabel.metrics import average_precision, best_thresholds, count
from metaformer.tasks.multilabel.results import ClassScore, MultilabelExample, MultilabelReport

EXAMPLES = 12
"""Images of each kind, with the highest loss and without an error, that a report has."""


class MultilabelEvaluation(ClassifierEvaluation):
    """A validation set and how a network is evaluated on it.

    Args:
        folder: images and labels.
        preprocess: how images become input.
        thresholds: (K,) scores from which on a class is predicted; None chooses those of the highest F1.
        options: those of `ClassifierEvaluation`.
    """

    folder: MultilabelFolder

    def __init__(
        self,
        folder: MultilabelFolder,
        preprocess: Preprocess,
        thresholds: Sequence[float] | None = None,
        **options: Unpack[ClassifierOptions],
    ) -> None:
        super().__init__(folder, preprocess, **options)
        self.thresholds = thresholds

    @torch.inference_mode()
    def run(self, forward: Forward) -> MultilabelReport:
        """Evaluate; `forward` gives logits (B, K) of images (B, 3, H, W).

        Raises:
            TrainingError: logits that are not finite; the message names the image.
            Interrupted: `stop` was true, on whatever rank.
        """
        own = list(self.logits(forward))
        indices = torch.cat([batch.indices for _, batch in own] or [torch.zeros(0, dtype=torch.int64)])
        outputs = torch.cat([logits for logits, _ in own] or [torch.zeros(0, len(self.folder.classes))])
        everything = all_gather_object((indices, outputs))  # every rank then computes the same figures
        indices, order = torch.cat([part for part, _ in everything]).sort()
        return self._report(torch.cat([part for _, part in everything])[order], indices)

    def _report(self, logits: Tensor, indices: Tensor) -> MultilabelReport:
        labels, scores = self.folder.labels[indices], logits.sigmoid()
        loss = F.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none").mean(
            dim=1
        )
        if self.thresholds is None:
            thresholds = best_thresholds(scores, labels)
        else:
            thresholds = torch.tensor(self.thresholds, dtype=torch.float64)
        counts = count(scores, labels, thresholds)
        ap = average_precision(scores, labels)
        there = labels.sum(dim=0) > 0
        tp, fp, fn = (float(part.sum()) for part in counts)
        precision = counts.tp / (counts.tp + counts.fp).clamp(min=1)
        recall = counts.tp / (counts.tp + counts.fn).clamp(min=1)
        rows = zip(
            self.folder.classes,
            labels.sum(dim=0).tolist(),
            ap.tolist(),
            thresholds.tolist(),
            precision.tolist(),
            recall.tolist(),
            counts.f1().tolist(),
            strict=True,
        )
        return MultilabelReport(
            images=len(labels),
            map=float(ap.nanmean()) if there.any() else 0.0,
            f1_micro=2 * tp / max(1.0, 2 * tp + fp + fn),
            f1_macro=float(counts.f1()[there].mean()) if there.any() else 0.0,
            loss=float(loss.mean()),
            per_class=tuple(
                ClassScore(name, int(images), None if math.isnan(own) else own, *figures)
                for name, images, own, *figures in rows
            ),
            examples=self._examples(scores >= thresholds, labels > 0.5, loss, indices),
        )

    def _examples(
        self, predicted: Tensor, labels: Tensor, loss: Tensor, indices: Tensor
    ) -> tuple[MultilabelExample, ...]:
        """The images with the highest loss among those with an error, and the first ones without."""
        wrong = (predicted != labels).any(dim=1)
        worst = [row for row in loss.argsort(descending=True, stable=True).tolist() if wrong[row]]
        right = (~wrong).nonzero().flatten().tolist()
        names = self.folder.classes
        return tuple(
            MultilabelExample(
                str(self.folder.path(int(indices[row]))),
                tuple(names[k] for k in labels[row].nonzero().flatten().tolist()),
                tuple(names[k] for k in predicted[row].nonzero().flatten().tolist()),
                float(loss[row]),
            )
            for row in (*worst[:EXAMPLES], *right[:EXAMPLES])
        )


def build_evaluation(
    model: LoadedModel,
    data: str | Path | None,
    split: str | None,
    *,
    batch_size: int = 128,
    workers: int = 4,
    layout: Layout | None = None,
    separator: str | None = None,
    threshold: float | None = None,
    image_size: int | None = None,
    flip: bool = False,
    crops: int = 1,
) -> MultilabelEvaluation:
    """The evaluation of a multi-label classifier.

    Args:
        model: what is evaluated.
        data: folder of the data set; None for the run's own.
        split: its split; None for the run's own, or `val`.
        batch_size: images at once, per device.
        workers: processes that read images, per device.
        layout: how the labels lie on disk (default: the run's own, or recognized).
        separator: what stands between the labels in a CSV column (default: the run's own, or a space).
        threshold: score from which on a class is predicted (default: the checkpoint's, one for each class).
        image_size: height and width of the network's input, in pixels (default: the checkpoint's).
        flip: average with the mirrored image.
        crops: 1 for the center crop, 5 to average it with the corners.

    Raises:
        ConfigError: a value out of range, no data, or another number of classes than the network has.
        DataError: the data set is not laid out as it should be.
    """
    model = model.with_preprocess(image_size=image_size)
    parts = partial(open_parts, layout=layout, separator=separator)
    folder = model.own_part(data, split, parts) or open_multilabel(
        *model.location(data, split),
        layout or model.options.layout,
        class_names=model.classes,
        separator=model.options.separator if separator is None else separator,
    )
    model.check_classes(folder.classes, folder.file)
    return MultilabelEvaluation(
        folder,
        model.preprocess,
        chosen_thresholds(model, threshold),
        batch_size=batch_size,
        workers=workers,
        flip=flip,
        crops=crops,
        pin_memory=model.device.type == "cuda",
    )


def chosen_thresholds(model: LoadedModel, threshold: float | None) -> tuple[float, ...]:
    """One threshold for all classes, or those of the model's checkpoint.

    Raises:
        ConfigError: a threshold outside 0 to 1.
    """
    if threshold is None:
        return tuple(model.metadata)
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}: it must lie between 0 and 1")
    return (threshold,) * model.num_classes
