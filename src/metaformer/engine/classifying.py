"""From a configuration to the task of telling classes of pictures apart."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from metaformer.data.dataset import Augmented
from metaformer.data.loader import DATA_TIMEOUT, Stop
from metaformer.data.mix import Mix
from metaformer.data.preprocess import Preprocess
from metaformer.data.split import need_two_classes, open_split
from metaformer.data.transforms import train_transform
from metaformer.engine.config import TrainConfig
from metaformer.engine.distributed import World
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.classify import Classify, build_classifier
from metaformer.tasks.criterion import build_criterion
from metaformer.tasks.distill import Distillation, load_teacher
from metaformer.tasks.evaluation import Evaluation


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
        Augmented(train, augmentation(config), config.seed),
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
        build_criterion(config.loss.name, config.loss.smoothing, config.augment.splits),
        mix=_mix(config, classes),
        mix_off_epoch=config.augment.mix_off_epoch,
        distillation=_distillation(config, classes, preprocess),
    )
    task.to(world.device)
    return task


def preprocessing(config: TrainConfig) -> Preprocess:
    """How a run's pictures become input in evaluation."""
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
    """How a run's pictures become input in training, before they are mixed.

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
