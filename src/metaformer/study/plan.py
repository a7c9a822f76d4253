"""The plan of a study, which comes before its runs: question, networks, budget, seeds, decisions."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, UnknownName
from metaformer.mixers import MIXERS
from metaformer.recipes import find
from metaformer.registry import parse
from metaformer.serialize import Range, Serializable, Text, errors_at, from_dict, merged, parse_yaml, to_dict
from metaformer.storage import read_text
from metaformer.study.results import DiagnosticTask, PerturbationKind, Positive
from metaformer.training.check import check_config

Purpose = Literal["pilot", "exploratory", "confirmatory"]
SEEDS: Final[Mapping[Purpose, int]] = {"pilot": 2, "exploratory": 5, "confirmatory": 10}
"""Seeds that a study needs at least, by what it is for."""
MOST_RUNS: Final = 10_000
"""Runs of tuning and comparison that a study has at most; a plan of more is a slip."""
RATES: Final = 5
"""Learning rates that each network is tuned with at least, but for a reason."""
Control = Literal["repeat", "shuffled_labels", "identity", "random", "external"]
CONTROLS: Final[tuple[Control, ...]] = ("repeat", "shuffled_labels", "identity", "random", "external")
Expectation = Literal["better", "worse", "equivalent"]
SMALLEST_SIDE: Final = 16
"""Pixels of an image that diagnostic tasks need."""
Points = Annotated[float, Range(0, 100, above=True)]
Side = Annotated[int, Range(1, 2**15, integer=True)]
Epochs = Annotated[int, Range(1, 2**31, integer=True)]
Seed = Annotated[int, Range(0, 2**32, integer=True)]
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,59}")
OWNED: Final[Mapping[str, str]] = {
    "model.name": "skeleton.model",
    "model.mixers": "mixers",
    "model.overrides": "skeleton.overrides",
    "model.pretrained": "transfer",
    "model.checkpoint": "transfer",
    "model.num_classes": "data",
    "data.root": "data.root",
    "data.train": "data.train",
    "data.val": "data.val",
    "data.val_fraction": "data.val",
    "optim.lr": "learning_rates",
    "schedule.epochs": "epochs",
    "schedule.steps": "epochs",
    "seed": "seeds",
    "task": "recipe",
}
"""Fields of a run's configuration that the plan sets elsewhere."""
OWNED_OF_SKELETON: Final[Mapping[str, str]] = {
    "mixers": "mixers",
    "num_classes": "data",
    "image_size": "overrides.data.image_size",
    "drop_path_rate": "overrides.model.drop_path_rate",
    "head_dropout": "overrides.model.head_dropout",
}
"""The same of the skeleton."""


@dataclass(frozen=True, kw_only=True)
class DataPlan(Serializable):
    """The data set: an image folder with splits for training, tuning and testing."""

    root: str
    """Folder of the data set."""
    train: Text = "train"
    """Training split."""
    val: Text = "val"
    """Split that learning rates are chosen on."""
    test: Text = "test"
    """Split that is compared on; nothing is chosen by it."""
    group: str | None = None
    """Test images whose paths below the split this regular expression matches alike are resampled together,
    such as `(patient[0-9]+)`; null for images that are independent of each other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        splits = {normpath(f"{self.root}/{split}") for split in (self.train, self.val, self.test)}
        if len(splits) < 3:  # of ./train, too: what was trained on tests nothing
            raise ConfigError("data: train, val and test must be three splits")


@dataclass(frozen=True, kw_only=True)
class Skeleton(Serializable):
    """The network that every mixer is put into."""

    model: Text
    """A variant, as listed by `metaformer list`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Other fields of `MetaFormerConfig`, such as `{dims: [32, 64, 128, 256], stem_stride: 2}`."""


@dataclass(frozen=True, kw_only=True)
class Budget(Serializable):
    """What networks are given equally much of."""

    match: Literal["parameters", "macs", "latency", "none"] = "parameters"
    """Parameters, multiply-accumulates at the training size, measured latency of eight images, or nothing."""
    tolerance: Annotated[float, Range(0, 0.5, above=True)] | None = None
    """Largest difference to the baseline, as a fraction of it; 0.02 of what is counted and 0.1 of a latency
    by default."""

    @property
    def within(self) -> float:
        """The tolerance, or its default."""
        return self.tolerance or (0.1 if self.match == "latency" else 0.02)


@dataclass(frozen=True, kw_only=True)
class Transfer(Serializable):
    """Fine-tuning of the baseline's trained networks after their mixers were swapped."""

    epochs: Epochs
    """Epochs of fine-tuning."""
    learning_rate: Positive
    """Its learning rate, the same for every mixer."""


@dataclass(frozen=True, kw_only=True)
class Plan(Serializable):
    """Everything that is decided before the first run of a study."""

    question: Text
    """What the study is to answer, in a sentence."""
    data: DataPlan
    recipe: Text
    """Recipe that all networks are trained by, as listed by `metaformer list --recipes`; from scratch."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of its configuration to change, in sections, such as `{data: {image_size: 28}}`."""
    skeleton: Skeleton
    mixers: dict[Text, Text | tuple[Text, ...]]
    """Mixers by the name that the report gives them: one for all stages, or a list with one for each."""
    baseline: Text
    """Which of them the others are compared with."""
    hypotheses: dict[Text, Expectation] = field(default_factory=dict)
    """What is expected of others, by name: to be `better` or `worse` than the baseline, or `equivalent`."""
    budget: Budget = field(default_factory=Budget)
    learning_rates: tuple[Positive, ...]
    """What each network is tuned with, at least five."""
    fewer_rates: Text | None = None
    """Why fewer than five suffice."""
    sweep_seeds: tuple[Seed, ...]
    """Seeds of the tuning, none of which is used again."""
    seeds: tuple[Seed, ...]
    """Seeds of the comparison; networks are paired by them."""
    purpose: Purpose = "exploratory"
    """What the study is for: `pilot` (2 seeds at least), `exploratory` (5) or `confirmatory` (10)."""
    metric: Literal["top1"] = "top1"
    """Primary metric, on test data."""
    smallest_effect: Points
    """Smallest difference of interest, in points of the metric; smaller ones are equivalent."""
    epochs: Epochs
    """Epochs of each run."""
    controls: tuple[Control, ...] = CONTROLS
    """The baseline again, with other seeds (`repeat`) and on shuffled labels (`shuffled_labels`), no mixer
    (`identity`), a frozen random one (`random`), and a ResNet of timm (`external`)."""
    external: Text = "resnet18"
    """The network of timm, a ResNet; its channels are matched to the budget, too."""
    cost_sizes: tuple[Side, ...] = ()
    """Image sizes at which costs are measured; that of training and twice it by default."""
    robustness: tuple[PerturbationKind, ...] = ()
    """Perturbations of test images against which the trained networks' accuracy is measured: `shift`,
    `rotation`, `size`, `corruption`."""
    receptive_field: bool = False
    """Whether the trained networks' effective receptive fields are measured."""
    diagnostics: tuple[DiagnosticTask, ...] = ()
    """Synthetic tasks of known demand that each mixer is trained on: `same_different`, `pointer`,
    `connectivity`, `counting`, `size_transfer`."""
    transfer: Transfer | None = None
    exclusions: Text = "none"
    """What would exclude a run, in words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_names()
        self._check_comparisons()
        self._check_tuning()
        self._check_measurements()
        for name in self.mixers:
            with errors_at(f"mixers.{name}"):
                self.network(self.stage_mixers(name))

    @property
    def sha256(self) -> str:
        """Hash of all fields that are not at their defaults; comments and their order do not count."""
        text = json.dumps(_set_fields(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image sizes at which costs are measured."""
        size = self.config().data.image_size
        return self.cost_sizes or (size, 2 * size)

    def stage_mixers(self, name: str) -> tuple[str, ...]:
        """Mixer of each stage, by the name in the plan."""
        spec = self.mixers[name]
        return spec if isinstance(spec, tuple) else (spec,) * len(self._skeleton().depths)

    def network(self, mixers: tuple[str, ...], **changes: Any) -> MetaFormerConfig:
        """The skeleton with these mixers, for images of the training size.

        Raises:
            ConfigError: a network that cannot be.
        """
        size = self.config().data.image_size
        return replace(self._skeleton(), mixers=mixers, **{"image_size": (size, size), **changes})

    def config(self) -> TrainConfig:
        """What the configurations of all runs share: recipe, overrides, data and epochs.

        Raises:
            ConfigError: an unknown recipe or field, or a field that the plan sets elsewhere.
        """
        values = to_dict(find(self.recipe)())
        for name, section in OWNED.items():
            if _holds(self.overrides, name.split(".")):
                raise ConfigError(f"overrides.{name}: a plan sets this by {section}")
        with errors_at("overrides"):
            config = from_dict(TrainConfig, merged(values, self.overrides))
        if config.data.batch_size == "auto":
            raise ConfigError(
                "overrides.data.batch_size: auto could give each network a batch of its own: give a number"
            )
        if config.task != TrainConfig().task:
            raise ConfigError(f"recipe: {self.recipe} is for task {config.task}; studies compare classifiers")
        data = replace(config.data, root=self.data.root, train=self.data.train, val=self.data.val)
        schedule = replace(config.schedule, epochs=self.epochs, steps=None)
        return replace(config, data=data, schedule=schedule)

    def _skeleton(self) -> MetaFormerConfig:
        name = self.skeleton.model
        if name not in VARIANTS:
            raise UnknownName("skeleton.model", name, VARIANTS)
        with errors_at("skeleton.overrides"):
            return MetaFormerConfig.from_dict({**VARIANTS[name].to_dict(), **self.skeleton.overrides})

    def _check_names(self) -> None:
        for name, spec in self.mixers.items():
            if not _NAME.fullmatch(name):
                raise ConfigError(f"mixers: {name!r} must be letters, digits, _ and ., at most 60 of them")
            for one in spec if isinstance(spec, tuple) else (spec,):
                with errors_at(f"mixers.{name}"):
                    MIXERS[parse(one)[0]]
        if len({name.casefold() for name in self.mixers}) < len(self.mixers):
            raise ConfigError("mixers: two names differ by capital letters alone")
        if len(self.mixers) < 2:
            raise ConfigError("mixers: a comparison needs two at least")
        for name in self.skeleton.overrides.keys() & OWNED_OF_SKELETON:
            raise ConfigError(f"skeleton.overrides.{name}: a plan sets this by {OWNED_OF_SKELETON[name]}")

    def _check_comparisons(self) -> None:
        if self.baseline not in self.mixers:
            raise UnknownName("baseline", self.baseline, self.mixers)
        for name in self.hypotheses:
            if name not in self.mixers:
                raise UnknownName("name in hypotheses", name, self.mixers.keys() - {self.baseline})
            if name == self.baseline:
                raise ConfigError(f"hypotheses.{name}: is the baseline, with which the others are compared")

    def _check_measurements(self) -> None:
        for name in ("controls", "cost_sizes", "robustness", "diagnostics"):
            self._check_unique(name)
        size = self.config().data.image_size
        if self.diagnostics and size < SMALLEST_SIDE:
            raise ConfigError(f"diagnostics: need images of {SMALLEST_SIDE} pixels at least, not {size}")

    def _check_unique(self, name: str) -> None:
        values = getattr(self, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}: names a value twice")

    def _check_tuning(self) -> None:
        for name in ("learning_rates", "sweep_seeds", "seeds"):
            self._check_unique(name)
        runs = len(self.mixers) * (len(self.learning_rates) * len(self.sweep_seeds) + len(self.seeds))
        if runs > MOST_RUNS:
            raise ConfigError(f"mixers, learning_rates, seeds: make {runs:,} runs, more than {MOST_RUNS:,}")
        if not self.learning_rates or not self.sweep_seeds:
            raise ConfigError("learning_rates, sweep_seeds: name one at least")
        if len(self.learning_rates) < RATES and self.fewer_rates is None:
            raise ConfigError(
                f"learning_rates: {len(self.learning_rates)} are too few to tune by: name {RATES} at least, "
                "or say why fewer suffice (fewer_rates)"
            )
        if len(self.seeds) < SEEDS[self.purpose]:
            raise ConfigError(
                f"seeds: {len(self.seeds)} are too few for purpose {self.purpose!r}, which needs "
                f"{SEEDS[self.purpose]}"
            )
        if shared := sorted({*self.seeds} & {*self.sweep_seeds}):
            raise ConfigError(
                f"sweep_seeds: {shared[0]} is among seeds: tune on other seeds than you compare"
            )
        config = self.config()
        for rate in (*self.learning_rates, *([self.transfer.learning_rate] if self.transfer else ())):
            check_config(replace(config, optim=replace(config.optim, lr=rate)))


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: it cannot be read, or a field is unknown, missing or wrong; the message names it.
    """
    return parse_plan(read_text(path, ConfigError, largest=1 << 20), path)


def parse_plan(text: str, where: object) -> Plan:
    """The plan of a YAML text; `where` is its file, for errors."""
    values = parse_yaml(text, where, ConfigError)
    with errors_at(where):
        return from_dict(Plan, values)


def _holds(values: Any, path: list[str]) -> bool:
    """Whether nested values hold something at a path."""
    if not path:
        return True
    return isinstance(values, Mapping) and path[0] in values and _holds(values[path[0]], path[1:])


def _set_fields(record: Any) -> dict[str, Any]:
    """Plain values of a dataclass, without those at their defaults: a field that is added changes no hash."""
    values = to_dict(record)
    for one in fields(record):
        value = getattr(record, one.name)
        if value == (one.default if one.default_factory is MISSING else one.default_factory()):
            del values[one.name]
        elif is_dataclass(value):
            values[one.name] = _set_fields(value)
    return values
