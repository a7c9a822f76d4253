"""Training of image classification: data, network, loss and evaluation of a run."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormer
from metaformer.config import TrainConfig
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.loader import Stop
from metaformer.data.preprocess import Preprocess
from metaformer.data.sampler import TrainSampler
from metaformer.data.shards.remote import is_remote
from metaformer.data.shards.tar import TarImages
from metaformer.data.split import Split, need_two_classes, open_split
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.base import StepContext, check_num_classes
from metaformer.tasks.check import warnings_of
from metaformer.tasks.classification.check import class_findings
from metaformer.tasks.classification.evaluate import (
    ClassificationEvaluation,
    open_run_division,
    read_class_subset,
)
from metaformer.tasks.classification.loss import (
    Criterion,
    Distillation,
    balanced_weights,
    build_criterion,
    load_teacher,
)
from metaformer.tasks.classification.mixup import Mixup
from metaformer.tasks.classifier import (
    ClassifierTask,
    augmentation,
    build_classifier,
    evaluation_options,
    preprocessing,
)
from metaformer.weights.trained import trained_with

_log = logging.getLogger(__name__)


class ClassificationTask(ClassifierTask):
    """Image classification.

    Args:
        model: gives logits (B, K).
        name: what the model is called.
        train: augmented training images; labels are class indices.
        evaluation: the validation data.
        preprocess: how images become input when the model is used.
        criterion: the loss.
        mix: Mixup and CutMix, which replace the targets.
        mix_off_epoch: epoch from which nothing is mixed; 0 for never.
        distillation: a teacher's part of the loss.
        balanced_sampling: draw every class equally often.

    Raises:
        ConfigError: balanced sampling of tar shards, whose order is their own.
    """

    task, metric = "classify", "top1"

    def __init__(
        self,
        model: MetaFormer,
        name: str,
        train: AugmentedDataset,
        evaluation: ClassificationEvaluation,
        preprocess: Preprocess,
        criterion: Criterion,
        *,
        mix: Mixup | None = None,
        mix_off_epoch: int = 0,
        distillation: Distillation | None = None,
        balanced_sampling: bool = False,
    ) -> None:
        super().__init__(model, name, train, evaluation, preprocess)
        if balanced_sampling and isinstance(train.source, TarImages):
            raise ConfigError(
                "data.balanced_sampling: tar shards are a stream; use loss.balance, or an image folder"
            )
        self.balanced_sampling = balanced_sampling
        self.criterion = criterion
        self.mix, self.mix_off_epoch, self.distillation = mix, mix_off_epoch, distillation

    def sampler(self, **options: Any) -> TrainSampler:
        """Order of the training images."""
        return super().sampler(
            classes=self.train.source.labels if self.balanced_sampling else None, **options
        )

    def to(self, device: torch.device) -> None:
        """Move model and teacher."""
        super().to(device)
        if self.distillation is not None:
            self.distillation.to(device)

    def count_classes(self, source: Any) -> Sequence[int]:
        """Images of each class; empty for a stream, which reads labels as it goes."""
        if isinstance(source, TarImages):
            return ()
        return torch.bincount(torch.as_tensor(source.labels), minlength=len(source.classes)).tolist()

    def losses(self, model: nn.Module, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Losses of a batch; with views of an image, they are stacked view by view."""
        images, targets = batch.images, batch.labels
        if images.ndim == 5:
            targets = targets.repeat(images.shape[1])
            images = images.transpose(0, 1).flatten(0, 1)  # (views·B, 3, H, W)
        if self.mix is not None:
            active = not self.mix_off_epoch or context.epoch < self.mix_off_epoch
            images, targets = self.mix(images, targets, context.step, part=context.part, active=active)
        logits = model(images).float()
        loss = self.criterion(logits, targets)
        if self.distillation is None:
            return {"loss": loss}
        distilled, share = self.distillation(logits, images), self.distillation.alpha
        return {"loss": loss * (1 - share) + distilled * share, "distill": distilled}


def build_classify(config: TrainConfig, world: World, stop: Stop | None = None) -> ClassificationTask:
    """Open the data and make model, loss and evaluation, all on the run's device; `stop` cuts evaluations.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be.
        WeightsError: a checkpoint does not fit.
    """
    divided = open_run_division(config)
    train = _open_training(config) if divided is None else divided[0]
    need_two_classes(train)
    subset = read_class_subset(config.evaluate.class_subset, train.classes)
    if divided is None:
        missing = subset is not None
        val = open_split(config.data.root, config.data.val, train.classes, allow_missing=missing)
    else:
        val = divided[1]
    classes = len(train.classes)
    check_num_classes(config, classes, train.folder)
    preprocess = preprocessing(config)
    if world.main:
        _log_size(config, preprocess)
    torch.manual_seed(config.seed)
    task = ClassificationTask(
        build_classifier(config, classes),
        config.model.name,
        AugmentedDataset(train, augmentation(config), config.seed, preprocess.background),
        ClassificationEvaluation(
            val,
            preprocess,
            real_labels=config.evaluate.real_labels,
            class_subset=subset,
            **evaluation_options(config, world, stop),
        ),
        preprocess,
        build_criterion(
            config.loss.name, config.loss.smoothing, config.augment.aug_splits, _class_weights(config, train)
        ),
        balanced_sampling=config.data.balanced_sampling,
        mix=_mix(config, classes),
        mix_off_epoch=config.augment.mix_off_epoch,
        distillation=_distillation(config, classes, preprocess),
    )
    for split, training in ((train, True), (val, False)):
        task.warnings += warnings_of(class_findings(split, training))
    task.to(world.device)
    return task


def _log_size(config: TrainConfig, preprocess: Preprocess) -> None:
    """Log size and crop of a run that starts from other weights, and those that these were trained with."""
    trained = trained_with(config.model)
    if trained is None:
        return
    text = f"data.image_size {preprocess.image_size}, evaluate.crop {preprocess.crop:g}"
    if (preprocess.image_size, preprocess.crop) == (trained.image_size, trained.crop):
        text += f", as {trained.source}"
    else:
        text += f"; {trained.source} was trained with {trained.image_size} and {trained.crop:g}"
    _log.warning("%s", text)


def _class_weights(config: TrainConfig, train: Split) -> Sequence[float] | None:
    """Weights of the classes in the loss; None for none."""
    weights, classes = config.loss.class_weights, len(train.classes)
    if config.loss.balance:
        return balanced_weights(train.labels, classes)
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"loss.class_weights has {len(weights)} numbers for {classes} classes")
    return weights


def _open_training(config: TrainConfig) -> Split:
    """The training split; where there are no splits, the error says how to go on."""
    root, split = config.data.root, config.data.train
    try:
        return open_split(root, split)
    except DataError as error:
        if is_remote(root) or not os.path.isdir(root) or os.path.isdir(Path(root) / split):
            raise
        raise DataError(
            f"{error}; class folders without splits: --data.val_fraction 0.2, or metaformer data split"
        ) from error


def _mix(config: TrainConfig, classes: int) -> Mixup | None:
    augment = config.augment
    if not (augment.mixup or augment.cutmix):
        return None
    return Mixup(
        classes,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        probability=augment.mix_probability,
        switch=augment.mix_switch,
        smoothing=config.loss.smoothing,
        seed=config.seed,
    )


def _distillation(config: TrainConfig, classes: int, student: Preprocess) -> Distillation | None:
    loss = config.loss
    if loss.distill == "none":
        return None
    assert loss.teacher is not None
    teacher, teacher_preprocess = load_teacher(loss.teacher, loss.teacher_checkpoint, classes)
    return Distillation(
        teacher,
        loss.distill,
        alpha=loss.distill_alpha,
        tau=loss.distill_tau,
        student_preprocess=student,
        teacher_preprocess=teacher_preprocess,
    )
