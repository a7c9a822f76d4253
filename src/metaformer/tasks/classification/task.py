"""Image classification."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.stage import Recompute
from metaformer.config import TrainConfig
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.loader import DATA_TIMEOUT, Stop
from metaformer.data.preprocess import Preprocess
from metaformer.data.split import need_two_classes, open_split
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.base import Forward, StepContext
from metaformer.tasks.classification.distill import Distillation, load_teacher
from metaformer.tasks.classification.evaluate import Evaluation
from metaformer.tasks.classification.loss import Criterion, build_criterion
from metaformer.tasks.classification.mixup import Mix
from metaformer.tasks.classification.results import EvalReport
from metaformer.tasks.classification.transforms import train_transform


class Classify:
    """Tell the classes of an image folder apart.

    Args:
        model: gives logits (B, K).
        name: what the model is called.
        train: augmented training images; labels are the model's classes.
        evaluation: the validation data.
        preprocess: how images become input when the model is used.
        criterion: the loss.
        mix: Mixup and CutMix; their targets replace the classes.
        mix_off_epoch: epoch from which nothing is mixed; 0 for never.
        distillation: a teacher's part of the loss.
    """

    metric = "top1"

    def __init__(
        self,
        model: MetaFormer,
        name: str,
        train: AugmentedDataset,
        evaluation: Evaluation,
        preprocess: Preprocess,
        criterion: Criterion,
        *,
        mix: Mix | None = None,
        mix_off_epoch: int = 0,
        distillation: Distillation | None = None,
    ) -> None:
        self.model, self.name, self.train, self.evaluation = model, name, train, evaluation
        self.preprocess, self.criterion = preprocess, criterion
        self.mix, self.mix_off_epoch, self.distillation = mix, mix_off_epoch, distillation

    def to(self, device: torch.device) -> None:
        """Move model and teacher."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.distillation is not None:
            self.distillation.to(device)

    def losses(self, model: nn.Module, batch: Batch, moment: StepContext) -> dict[str, Tensor]:
        """Losses of a batch; with views of an image, they are stacked view by view."""
        images, targets = batch.images, batch.labels
        if images.ndim == 5:
            targets = targets.repeat(images.shape[1])
            images = images.transpose(0, 1).flatten(0, 1)  # (views·B, 3, H, W)
        if self.mix is not None:
            active = not self.mix_off_epoch or moment.epoch < self.mix_off_epoch
            images, targets = self.mix(images, targets, moment.step, part=moment.part, active=active)
        logits = model(images).float()
        loss = self.criterion(logits, targets)
        if self.distillation is None:
            return {"loss": loss}
        distilled, share = self.distillation(logits, images), self.distillation.alpha
        return {"loss": loss * (1 - share) + distilled * share, "distill": distilled}

    def names(self, batch: Batch) -> list[str]:
        """Files that a batch came from."""
        source = self.train.source
        return [str(source.path(int(index))) for index in batch.indices]

    def evaluate(self, forward: Forward) -> EvalReport:
        """Measure on the validation data."""
        return self.evaluation.run(forward)

    def close(self) -> None:
        """Stop the processes that read validation data."""
        self.evaluation.close()

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
        look, classes = self.preprocess, list(self.evaluation.folder.classes)
        return {
            "library_name": "metaformer",
            "architecture": self.name,
            "out_indices": None,
            "config": self.model.config.to_dict(),
            "pretrained_cfg": {
                **self.model.pretrained_cfg,
                "url": "",
                "tag": "",
                "num_classes": len(classes),
                "label_names": classes,
                "input_size": [3, look.image_size, look.image_size],
                "crop_pct": look.crop,
                "interpolation": look.interpolation,
                "mean": list(look.mean),
                "std": list(look.std),
            },
        }


def build_classifier(
    name: str,
    classes: int,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    mixers: str | Sequence[str] | None = None,
    drop_path_rate: float = 0.0,
    head_dropout: float = 0.0,
    image_size: int = 224,
    overrides: dict[str, Any] | None = None,
    grad_checkpointing: Recompute = False,
) -> MetaFormer:
    """Make the network for this many classes, from own or published weights where they are asked for.

    A file of other classes gives everything but its last layer; one of another grid is resampled.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    from metaformer.factory import create_model
    from metaformer.weights.load import load_weights

    fields: dict[str, Any] = {"head_dropout": head_dropout, **(overrides or {})}
    for own in ("num_classes", "drop_path_rate"):
        if own in fields:
            raise ConfigError(f"model.overrides: {own} has a field of its own, model.{own}")
    if mixers is not None:
        fields["mixers"] = mixers if isinstance(mixers, str) else tuple(mixers)
    published = pretrained and checkpoint is None
    if not published:  # published weights bring the grid that they were trained on
        fields.setdefault("image_size", (image_size, image_size))
    model = create_model(
        name, pretrained=published, num_classes=classes, drop_path_rate=drop_path_rate, **fields
    )
    if checkpoint is not None:
        report = load_weights(model, checkpoint, classifier="reset", grid="interpolate")
        logging.getLogger(__name__).info("%s", report)
    assert isinstance(model, MetaFormer)
    if grad_checkpointing:
        model.set_grad_checkpointing(grad_checkpointing)
    return model


def build_classify(config: TrainConfig, world: World, stop: Stop | None = None) -> Classify:
    """Open the data and make model, loss and evaluation, all on the run's device; `stop` cuts evaluations.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be.
        WeightsError: a checkpoint does not fit.
    """
    train = open_split(config.data.root, config.data.train)
    need_two_classes(train)
    subset = read_names(config.evaluate.class_subset, train.classes)
    val = open_split(config.data.root, config.data.val, train.classes, allow_missing=subset is not None)
    classes = len(train.classes)
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {train.folder} holds {classes} classes: "
            f"leave the field out"
        )
    preprocess = preprocessing(config)
    torch.manual_seed(config.seed)
    task = Classify(
        build_classifier(
            config.model.name,
            classes,
            pretrained=config.model.pretrained,
            checkpoint=config.model.checkpoint,
            mixers=config.model.mixers,
            drop_path_rate=config.model.drop_path_rate,
            head_dropout=config.model.head_dropout,
            image_size=config.data.image_size,
            overrides=config.model.overrides,
            grad_checkpointing=config.model.grad_checkpointing,
        ),
        config.model.name,
        AugmentedDataset(train, augmentation(config), config.seed),
        Evaluation(
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


def preprocessing(config: TrainConfig) -> Preprocess:
    """How a run's images become input in evaluation."""
    return Preprocess(
        config.data.image_size,
        config.evaluate.crop,
        config.evaluate.interpolation,
        config.data.mean,
        config.data.std,
    )


def read_names(path: str | None, classes: tuple[str, ...]) -> list[str] | None:
    """Class names, one per line, each among these classes; no path gives None.

    Raises:
        DataError: the file cannot be read, is empty, or names a class that there is not.
    """
    if path is None:
        return None
    try:
        names = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    strange = [name for name in names if name not in set(classes)]
    if strange or not names:
        what = f"{strange[0]!r} is no class of the data" if strange else "names no class"
        raise DataError(f"{path}: {what}; write one class name per line")
    return names


def augmentation(config: TrainConfig) -> Callable[[Image], Tensor]:
    """How a run's images become input in training, before they are mixed.

    Raises:
        ConfigError: a value of `augment` out of range.
    """
    fields = asdict(config.augment)
    for mixing in ("mixup", "cutmix", "mix_probability", "mix_switch", "mix_off_epoch"):
        del fields[mixing]
    return train_transform(config.data.image_size, **fields, mean=config.data.mean, std=config.data.std)


def _mix(config: TrainConfig, classes: int) -> Mix | None:
    augment = config.augment
    if not (augment.mixup or augment.cutmix):
        return None
    return Mix(
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
    teacher, taught = load_teacher(loss.teacher, loss.teacher_checkpoint, classes)
    return Distillation(
        teacher, loss.distill, alpha=loss.distill_alpha, tau=loss.distill_tau, student=student, taught=taught
    )
