"""Training of multi-label image classification: data, network, loss and evaluation of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormer
from metaformer.config import TrainConfig
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.loader import Stop
from metaformer.data.preprocess import Preprocess
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError
from metaformer.serialize import Probability, decode
from metaformer.tasks.base import Forward, StepContext, check_num_classes
from metaformer.tasks.check import warnings_of
from metaformer.tasks.classifier import (
    ClassifierTask,
    augmentation,
    build_classifier,
    evaluation_options,
    preprocessing,
)
from metaformer.tasks.multilabel.check import label_findings
from metaformer.tasks.multilabel.dataset import MultilabelFolder, open_labels, open_parts
from metaformer.tasks.multilabel.evaluate import MultilabelEvaluation
from metaformer.tasks.multilabel.loss import AsymmetricLoss, BinaryCrossEntropy, balanced_pos_weight
from metaformer.tasks.multilabel.metrics import DEFAULT_THRESHOLD
from metaformer.tasks.multilabel.results import MultilabelReport


class MultilabelTask(ClassifierTask):
    """Multi-label classification.

    Args:
        model: gives logits (B, K).
        name: what the model is called.
        train: augmented training images; labels are (K,) of 0 and 1.
        evaluation: the validation data.
        preprocess: how images become input when the model is used.
        criterion: the loss.
    """

    task, metric = "multilabel", "map"
    evaluation: MultilabelEvaluation

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

    def count_classes(self, source: Any) -> Sequence[int]:
        """Images that have each class."""
        return source.labels.sum(dim=0).int().tolist()

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

    def metadata(self) -> dict[str, Any]:
        """The thresholds of the classes."""
        return {"thresholds": list(self.thresholds)}

    def hub_card(self) -> dict[str, Any]:
        """`config.json`, which names the task: other classifiers give one class an image."""
        return {**super().hub_card(), "task": self.task}


def build_multilabel(config: TrainConfig, world: World, stop: Stop | None = None) -> MultilabelTask:
    """Open the data of a run and build network, loss and evaluation on its device.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be.
        WeightsError: a checkpoint does not fit.
    """
    options = config.multilabel
    parts = open_parts(config)
    if parts is None:
        train = open_labels(config, config.data.train, options.class_names)
        parts = train, open_labels(config, config.data.val, train.classes)
    train, val = parts
    _check_classes(config, train)
    preprocess = preprocessing(config)
    torch.manual_seed(config.seed)
    weights = None if options.pos_weight is None else torch.tensor(options.pos_weight)
    if options.balance:
        weights = balanced_pos_weight(train.labels)
    evaluation = MultilabelEvaluation(
        val,
        preprocess,
        None if options.threshold is None else (options.threshold,) * len(val.classes),
        **evaluation_options(config, world, stop),
    )
    criterion: nn.Module = BinaryCrossEntropy(weights)
    if options.loss == "asymmetric":
        criterion = AsymmetricLoss(options.gamma_pos, options.gamma_neg, options.margin, weights)
    task = MultilabelTask(
        build_classifier(config, len(train.classes)),
        config.model.name,
        AugmentedDataset(train, augmentation(config), config.seed, preprocess.background),
        evaluation,
        preprocess,
        criterion,
    )
    for split, training in ((train, True), (val, False)):
        task.warnings += warnings_of(label_findings(split, training))
    task.to(world.device)
    return task


def _check_classes(config: TrainConfig, train: MultilabelFolder) -> None:
    classes, weights = len(train.classes), config.multilabel.pos_weight
    if not classes:
        raise DataError(f"{train.file}: no image has a label")
    check_num_classes(config, classes, train.file)
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"multilabel.pos_weight has {len(weights)} numbers for {classes} classes")
