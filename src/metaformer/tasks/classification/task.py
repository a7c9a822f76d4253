"""Training of image classification: data, network, loss and evaluation of a run."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormer
from metaformer.config import TrainConfig
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.loader import DATA_TIMEOUT, Stop
from metaformer.data.preprocess import Preprocess
from metaformer.data.split import need_two_classes, open_split
from metaformer.distributed import World
from metaformer.errors import ConfigError
from metaformer.tasks.base import StepContext, Task
from metaformer.tasks.classification.distill import Distillation, load_teacher
from metaformer.tasks.classification.evaluate import ClassificationEvaluation, read_class_subset
from metaformer.tasks.classification.loss import Criterion, build_criterion
from metaformer.tasks.classification.mixup import Mixup
from metaformer.tasks.classification.transforms import train_transform
from metaformer.tasks.initial_weights import model_fields
from metaformer.weights.card import model_card
from metaformer.weights.trained import trained_with


class ClassificationTask(Task):
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
    """

    metric = "top1"
    model: MetaFormer
    evaluation: ClassificationEvaluation
    preprocess: Preprocess

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
    ) -> None:
        super().__init__(model, name, train, evaluation, preprocess)
        self.criterion = criterion
        self.mix, self.mix_off_epoch, self.distillation = mix, mix_off_epoch, distillation

    def to(self, device: torch.device) -> None:
        """Move model and teacher."""
        super().to(device)
        if self.distillation is not None:
            self.distillation.to(device)

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

    def card(self) -> dict[str, Any]:
        """Architecture, classes and preprocessing."""
        return {
            "task": "classify",
            "name": self.name,
            "model": self.model.config.to_dict(),
            "classes": list(self.evaluation.folder.classes),
            "preprocess": self.preprocess.to_dict(),
        }

    def hub_card(self) -> dict[str, Any]:
        """Architecture and preprocessing, as `from_pretrained` reads them from `config.json`."""
        classes = list(self.evaluation.folder.classes)
        return classifier_hub_card(self.model, self.name, classes, self.preprocess)


def classifier_hub_card(
    model: MetaFormer, name: str, classes: list[str], preprocess: Preprocess
) -> dict[str, Any]:
    """`config.json` of a classifier: ours, with `pretrained_cfg` in timm's terms."""
    pretrained_cfg = {
        **model.pretrained_cfg,
        "url": "",
        "tag": "",
        "num_classes": len(classes),
        "label_names": classes,
        "input_size": [3, preprocess.image_size, preprocess.image_size],
        "crop_pct": preprocess.crop,
        "interpolation": preprocess.interpolation,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    return model_card(name, model.config, pretrained_cfg)


def build_classifier(config: TrainConfig, classes: int) -> MetaFormer:
    """The network of a run for this many classes, with own or published weights where asked for.

    A file of other classes gives everything but its last layer; one of another grid is resampled.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    from metaformer.factory import create_model
    from metaformer.weights.load import load_weights

    network, size = config.model, config.data.image_size
    fields = model_fields(network, head_dropout=network.head_dropout)
    published = network.pretrained and network.checkpoint is None
    if not published:  # published weights bring the grid that they were trained on
        fields.setdefault("image_size", (size, size))
    model = create_model(
        network.name,
        pretrained=published,
        num_classes=classes,
        **fields,
    )
    if network.checkpoint is not None:
        report = load_weights(model, network.checkpoint, classifier="reset", grid="interpolate")
        logging.getLogger(__name__).info("%s", report)
    assert isinstance(model, MetaFormer)
    if network.grad_checkpointing:
        model.set_grad_checkpointing(network.grad_checkpointing)
    return model


def build_classify(config: TrainConfig, world: World, stop: Stop | None = None) -> ClassificationTask:
    """Open the data and make model, loss and evaluation, all on the run's device; `stop` cuts evaluations.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be.
        WeightsError: a checkpoint does not fit.
    """
    train = open_split(config.data.root, config.data.train)
    need_two_classes(train)
    subset = read_class_subset(config.evaluate.class_subset, train.classes)
    val = open_split(config.data.root, config.data.val, train.classes, allow_missing=subset is not None)
    classes = len(train.classes)
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {train.folder} holds {classes} classes: "
            f"leave the field out"
        )
    preprocess = preprocessing(config)
    if world.main:
        _log_size(config, preprocess)
    torch.manual_seed(config.seed)
    task = ClassificationTask(
        build_classifier(config, classes),
        config.model.name,
        AugmentedDataset(train, augmentation(config), config.seed),
        ClassificationEvaluation(
            val,
            preprocess,
            batch_size=config.data.eval_batch_size,
            workers=config.data.workers,
            flip=config.evaluate.flip,
            crops=config.evaluate.crops,
            real_labels=config.evaluate.real_labels,
            class_subset=subset,
            pin_memory=world.device.type == "cuda",
            timeout=min(DATA_TIMEOUT, config.runtime.timeout),
            stop=stop,
        ),
        preprocess,
        build_criterion(config.loss.name, config.loss.smoothing, config.augment.aug_splits),
        mix=_mix(config, classes),
        mix_off_epoch=config.augment.mix_off_epoch,
        distillation=_distillation(config, classes, preprocess),
    )
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
    logging.getLogger(__name__).warning("%s", text)


def preprocessing(config: TrainConfig) -> Preprocess:
    """How a run's images become input in evaluation."""
    return Preprocess(
        config.data.image_size,
        config.evaluate.crop,
        config.evaluate.interpolation,
        config.data.mean,
        config.data.std,
    )


def augmentation(config: TrainConfig) -> Callable[[Image], Tensor]:
    """How a run's images become input in training, before they are mixed.

    Raises:
        ConfigError: a value of `augment` out of range.
    """
    fields = asdict(config.augment)
    for mixing in ("mixup", "cutmix", "mix_probability", "mix_switch", "mix_off_epoch"):
        del fields[mixing]
    return train_transform(config.data.image_size, **fields, mean=config.data.mean, std=config.data.std)


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
