"""Training of multi-label image classification: data, network, loss and evaluation of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormer
from metaformer.config import TrainConfig
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.loader import DATA_TIMEOUT, Stop
from metaformer.data.preprocess import Preprocess
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError
from metaformer.serialize import Probability, decode
from metaformer.tasks.base import Forward, StepContext, Task
from metaformer.tasks.classification.task import (
    augmentation,
    build_classifier,
    classifier_hub_card,
    preprocessing,
)
from metaformer.tasks.multilabel.dataset import MultilabelFolder, open_multilabel
from metaformer.tasks.multilabel.evaluate import MultilabelEvaluation
from metaformer.tasks.multilabel.loss import balanced_pos_weight, build_loss
from metaformer.tasks.multilabel.metrics import DEFAULT_THRESHOLD
from metaformer.tasks.multilabel.results import MultilabelReport


class MultilabelTask(Task):
    """Multi-label classification.

    Args:
        model: gives logits (B, K).
        name: what the model is called.
        train: augmented training images; labels are (K,) of 0 and 1.
        evaluation: the validation data.
        preprocess: how images become input when the model is used.
        criterion: the loss.
    """

    metric = "map"
    model: MetaFormer
    evaluation: MultilabelEvaluation
    preprocess: Preprocess

    def __init__(
        self,
        model: MetaFormer,
        name: str,
        train: AugmentedDataset,
        evaluation: MultilabelEvaluation,
        preprocess: Preprocess,
        criterion: nn.Module,
    ) -> None:
        super().__init__(model, name, train, evaluation, preprocess)
        self.criterion = criterion
        fixed = evaluation.thresholds
        self.thresholds = tuple(fixed) if fixed else (DEFAULT_THRESHOLD,) * len(evaluation.folder.classes)

    def to(self, device: torch.device) -> None:
        """Move model and class weights."""
        super().to(device)
        self.criterion.to(device)

    def losses(self, model: nn.Module, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Loss of a batch."""
        return {"loss": self.criterion(model(batch.images).float(), batch.labels)}

    def evaluate(self, forward: Forward) -> MultilabelReport:
        """Evaluate, and keep the thresholds for the checkpoint."""
        report = self.evaluation.run(forward)
        self.thresholds = report.thresholds
        return report

    def restore(self, card: Mapping[str, Any]) -> None:
        """Take over the thresholds of a checkpoint."""
        self.thresholds = decode(tuple[Probability, ...], card["thresholds"], "thresholds")

    def card(self) -> dict[str, Any]:
        """Architecture, classes with their thresholds, and preprocessing."""
        return {
            "task": "multilabel",
            "name": self.name,
            "model": self.model.config.to_dict(),
            "classes": list(self.evaluation.folder.classes),
            "thresholds": list(self.thresholds),
            "preprocess": self.preprocess.to_dict(),
        }

    def hub_card(self) -> dict[str, Any]:
        """The same as `from_pretrained` reads it from `config.json`."""
        classes = list(self.evaluation.folder.classes)
        card = classifier_hub_card(self.model, self.name, classes, self.preprocess)
        card["pretrained_cfg"]["thresholds"] = list(self.thresholds)
        return {**card, "task": "multilabel"}


def build_multilabel(config: TrainConfig, world: World, stop: Stop | None = None) -> MultilabelTask:
    """Open the data of a run and build network, loss and evaluation on its device.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be.
        WeightsError: a checkpoint does not fit.
    """
    options = config.multilabel
    train = open_split(config, config.data.train, options.class_names)
    val = open_split(config, config.data.val, train.classes)
    _check_classes(config, train)
    preprocess = preprocessing(config)
    torch.manual_seed(config.seed)
    weights = options.pos_weight
    evaluation = MultilabelEvaluation(
        val,
        preprocess,
        None if options.threshold is None else (options.threshold,) * len(val.classes),
        batch_size=config.data.eval_batch_size,
        workers=config.data.workers,
        flip=config.evaluate.flip,
        crops=config.evaluate.crops,
        pin_memory=world.device.type == "cuda",
        timeout=min(DATA_TIMEOUT, config.runtime.timeout),
        stop=stop,
    )
    criterion = build_loss(
        options.loss,
        gamma_pos=options.gamma_pos,
        gamma_neg=options.gamma_neg,
        margin=options.margin,
        pos_weight=(
            balanced_pos_weight(train.labels)
            if options.balance
            else None
            if weights is None
            else torch.tensor(weights)
        ),
    )
    task = MultilabelTask(
        build_classifier(config, len(train.classes)),
        config.model.name,
        AugmentedDataset(train, augmentation(config), config.seed),
        evaluation,
        preprocess,
        criterion,
    )
    task.to(world.device)
    return task


def open_split(config: TrainConfig, split: str, class_names: str | Sequence[str] | None) -> MultilabelFolder:
    """A split of a run's data set.

    Raises:
        DataError: it is not laid out as it should be.
    """
    options = config.multilabel
    return open_multilabel(
        config.data.root, split, options.layout, class_names=class_names, separator=options.separator
    )


def _check_classes(config: TrainConfig, train: MultilabelFolder) -> None:
    classes, weights = len(train.classes), config.multilabel.pos_weight
    if not classes:
        raise DataError(f"{train.file}: no image has a label")
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {train.file} has {classes} classes: "
            "leave the field out"
        )
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"multilabel.pos_weight has {len(weights)} numbers for {classes} classes")
