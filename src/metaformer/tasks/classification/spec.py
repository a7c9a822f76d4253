"""`TaskSpec` of image classification: what the rest of the library asks of it."""

from pathlib import Path

from torch import nn

from metaformer.config import TrainConfig
from metaformer.data.split import open_split
from metaformer.errors import ConfigError
from metaformer.factory import create_model, is_model
from metaformer.serialize import Range, check_ranges
from metaformer.tasks.base import TaskSpec, numbered_classes
from metaformer.tasks.classification.check import check_data_set, recognize
from metaformer.tasks.classification.evaluate import build_evaluation
from metaformer.tasks.classification.explain import ClassifierExplain
from metaformer.tasks.classification.export import ClassifierExport
from metaformer.tasks.classification.predict import ClassificationPredictor
from metaformer.tasks.classification.report import build_report
from metaformer.tasks.classification.task import build_classify
from metaformer.tasks.classifier import describe, load, write_predictions
from metaformer.tasks.demo import write_class_folders

IMAGENET_CLASSES = 1000


def check_config(config: TrainConfig) -> None:
    """Check the values of `loss` against each other.

    Raises:
        ConfigError: the first that cannot be.
    """
    loss, augment = config.loss, config.augment
    if augment.aug_splits > 1 and (augment.mixup > 0 or augment.cutmix > 0):
        raise ConfigError(
            "augment.aug_splits compares views of one image: set augment.mixup and augment.cutmix to 0"
        )
    check_ranges(config, {"loss.class_weights": Range(0, 1e9)})
    if loss.class_weights is not None and loss.balance:
        raise ConfigError("loss.class_weights and loss.balance both set weights: choose one")
    if (loss.class_weights is not None or loss.balance) and loss.name != "cross_entropy":
        raise ConfigError(
            f"loss.class_weights, loss.balance: weights of classes are of cross_entropy, not of {loss.name}"
        )
    if loss.name == "jsd" and augment.aug_splits < 2:
        raise ConfigError("loss.name 'jsd' compares views of an image: set augment.aug_splits to 2 or 3")
    if loss.distill != "none" and loss.teacher is None:
        raise ConfigError(f"loss.distill {loss.distill!r} needs loss.teacher: a model name, or timm:NAME")


def create(
    name: str,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    data: tuple[str | Path, str] | None = None,
    ema: bool | None = None,
) -> nn.Module | None:
    """A classifier by name; a checkpoint of unknown classes has as many as the data."""
    if not is_model(name):
        return None
    if num_classes is None and checkpoint is not None and data is not None:
        num_classes = len(open_split(*data).classes)
    return create_model(name, checkpoint is None, checkpoint, num_classes, ema=ema)


def default_classes(count: int) -> tuple[str, ...]:
    """ImageNet's class names for 1000 classes, else numbers."""
    if count != IMAGENET_CLASSES:
        return numbered_classes(count)
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(count))


SPEC = TaskSpec(
    name="classify",
    title="image classification",
    section="loss",
    check_config=check_config,
    build=build_classify,
    forward=lambda model: model,
    load=load,
    create=create,
    describe=describe,
    default_classes=default_classes,
    evaluation=build_evaluation,
    predictor=ClassificationPredictor,
    served={"top_k": 10},
    write=write_predictions,
    export=ClassifierExport(),
    explain=ClassifierExplain(),
    report=build_report,
    check_data=check_data_set,
    recognize=recognize,
    write_demo=write_class_folders,
)
