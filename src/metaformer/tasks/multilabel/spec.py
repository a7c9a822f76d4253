"""`TaskSpec` of multi-label image classification: what the rest of the library asks of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from torch import nn

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError
from metaformer.serialize import NON_NEGATIVE, Range, check_ranges
from metaformer.tasks import classifier
from metaformer.tasks.base import LoadedModel, TaskSpec
from metaformer.tasks.demo import write_label_csv
from metaformer.tasks.multilabel.check import check_multilabel, recognize
from metaformer.tasks.multilabel.evaluate import build_evaluation
from metaformer.tasks.multilabel.explain import MultilabelExplain
from metaformer.tasks.multilabel.export import MultilabelExport
from metaformer.tasks.multilabel.metrics import DEFAULT_THRESHOLD, read_thresholds
from metaformer.tasks.multilabel.predict import MultilabelPredictor
from metaformer.tasks.multilabel.report import build_report
from metaformer.tasks.multilabel.task import build_multilabel

RANGES: Final[Mapping[str, Range]] = {
    "multilabel.gamma_pos": Range(0, 100),
    "multilabel.gamma_neg": Range(0, 100),
    "multilabel.margin": Range(0, 1, below=True),
    "multilabel.threshold": Range(0, 1),
    "multilabel.pos_weight": NON_NEGATIVE,
}


def check_config(config: TrainConfig) -> None:
    """Check the values of `multilabel`.

    Raises:
        ConfigError: the first that is out of range, or two that contradict each other.
    """
    check_ranges(config, RANGES)
    options = config.multilabel
    if options.pos_weight is not None and options.balance:
        raise ConfigError("multilabel.pos_weight and multilabel.balance both set weights: choose one")
    if not options.separator:
        raise ConfigError("multilabel.separator is empty: write what stands between labels")


def load(spec: TaskSpec, card: Mapping[str, Any]) -> LoadedModel:
    """A multi-label classifier from a checkpoint's card, its weights random."""
    model = classifier.load(spec, card)
    return replace(model, metadata=read_thresholds(card["thresholds"], model.num_classes))


def describe(spec: TaskSpec, model: nn.Module, name: str) -> LoadedModel:
    """A multi-label classifier with what its `pretrained_cfg` says of it."""
    loaded = classifier.describe(spec, model, name)
    thresholds = model.pretrained_cfg.get("thresholds", (DEFAULT_THRESHOLD,) * loaded.num_classes)  # type: ignore[union-attr,operator]
    return replace(loaded, metadata=read_thresholds(thresholds, loaded.num_classes))


SPEC = TaskSpec(
    name="multilabel",
    title="multi-label classification",
    section="multilabel",
    unused={
        "data.balanced_sampling": False,
        "augment.mixup": 0.0,
        "augment.cutmix": 0.0,
        "augment.aug_splits": 1,
        "evaluate.real_labels": None,
        "evaluate.class_subset": None,
    },
    check_config=check_config,
    build=build_multilabel,
    forward=lambda model: model,
    load=load,
    describe=describe,
    evaluation=build_evaluation,
    predictor=MultilabelPredictor,
    write=classifier.write_predictions,
    export=MultilabelExport(),
    explain=MultilabelExplain(),
    report=build_report,
    check_data=check_multilabel,
    recognize=recognize,
    write_demo=write_label_csv,
)
