"""What a task is: its network, data, losses, evaluation, predictions and report behind one interface."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.attribution.cam import Score
from metaformer.backbones.metaformer import MetaFormer
from metaformer.config import ModelConfig, TrainConfig
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.demo import WriteDemo
from metaformer.data.divide import Divisible, check_division, divide
from metaformer.data.loader import DATA_TIMEOUT, Loader, Stop
from metaformer.data.sampler import EvalSampler, Sample, TrainSampler
from metaformer.distributed import World, rank, world_size
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.factory import InitialWeights
from metaformer.models.base import DenseNetwork, autocast
from metaformer.report.page import TaskReport
from metaformer.tasks.check import Certainty, CheckReport
from metaformer.tasks.exported import ExportedNetwork, TaskExport
from metaformer.tasks.heat import Claim, Input, Subject
from metaformer.tasks.outputs import Legend, Prediction
from metaformer.tasks.report import Maps, Report
from metaformer.tasks.stream import ImageList, OnBad, raise_bad
from metaformer.visualize.canvas import Box
from metaformer.weights.card import model_card
from metaformer.weights.sources import find_source

_log = logging.getLogger(__name__)
D = TypeVar("D", bound=Divisible)
Forward = Callable[..., Any]
"""A network's outputs for a batch of images (B, 3, H, W), on the run's device and in its precision."""


class StepContext(NamedTuple):
    """Position of a batch in a run: with the seed, all that its randomness may depend on."""

    step: int
    """Optimizer step since the start of the run."""
    epoch: int
    part: int = 0
    """Which of the step's batches, over ranks and micro-batches."""


class Loading(TypedDict, total=False):
    """How an evaluation reads its images: arguments of `Loader`."""

    workers: int
    pin_memory: bool
    timeout: float
    stop: Stop | None


def loading(config: TrainConfig, world: World, stop: Stop | None) -> Loading:
    """How the evaluations of a run read their images; `stop` cuts them."""
    return {
        "workers": config.data.workers,
        "pin_memory": world.device.type == "cuda",
        "timeout": min(DATA_TIMEOUT, config.runtime.timeout),
        "stop": stop,
    }


class Evaluation(ABC):
    """A validation set and how a network is evaluated on it: every image once, on any number of ranks.

    Args:
        dataset: the images.
        batch_size: images per batch and rank.
        loading: how they are read.
    """

    def __init__(self, dataset: AugmentedDataset, batch_size: int = 1, **loading: Unpack[Loading]) -> None:
        sampler = EvalSampler(len(dataset), batch_size=batch_size, rank=rank(), world=world_size())
        self.most = sampler.most
        """Batches of the rank that has the most, for `lockstep`."""
        self.loader = Loader(dataset, sampler, **loading)

    @abstractmethod
    def run(self, forward: Forward) -> Report:
        """Evaluate a network; under torchrun all processes together."""

    def close(self) -> None:
        """Stop the worker processes."""
        self.loader.close()


class Predict(Protocol):
    """A network as a function of images of any size."""

    @property
    def model(self) -> "LoadedModel": ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Options that change the results, as plain values."""

    @property
    def legend(self) -> Legend:
        """What viewers need beside the results."""

    def predict_images(self, images: Sequence[Image.Image]) -> list[Any]:
        """Results of RGB images in memory, as `predict` gives them, all at once."""

    def predict(self, source: ImageList, on_bad: OnBad = raise_bad) -> Iterator[Prediction[Any]]:
        """Predictions in order, one for each image or video frame.

        Args:
            source: the images.
            on_bad: gets the error of each image that cannot be read; raises it by default.

        Raises:
            BadImage: an image cannot be read.
            TrainingError: outputs that are not finite.
        """


class Task(ABC):
    """Network, data, losses and evaluation of a training run; the training loop needs nothing else."""

    task: str
    """What configurations and checkpoints call it."""
    counted = "images of each class"
    """What `count_classes` counts."""
    count_format = "{0}"
    """How a count is shown: {0} is the count, {1} its percentage of all."""
    metric: str
    """The figure of the report by which the best checkpoint is chosen; higher is better."""

    def __init__(
        self, model: nn.Module, name: str, train: AugmentedDataset, evaluation: Evaluation, preprocess: Any
    ) -> None:
        self.model, self.name, self.train = model, name, train
        self.evaluation, self.preprocess = evaluation, preprocess
        self.warnings: list[str] = []
        """What `metaformer data check` says about the data, a line for each kind."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Losses of a batch on the model's device; `loss` is minimized, the others are logged."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the training data."""
        source: Any = self.train.source
        return tuple(source.classes)

    def card(self) -> dict[str, Any]:
        """All that is needed to build the network again and use it, as plain values."""
        config: Any = self.model.config
        return {
            "task": self.task,
            "name": self.name,
            "model": config.to_dict(),
            "classes": list(self.classes),
            **self.metadata(),
            "preprocess": self.preprocess.to_dict(),
        }

    def count_classes(self, source: Any) -> Sequence[int]:
        """What `counted` says of each class of a data set; empty where that is not known."""
        return ()

    def metadata(self) -> dict[str, Any]:
        """What the card says of the classes beside their names, such as colors or thresholds."""
        return {}

    def restore(self, card: Mapping[str, Any]) -> None:  # noqa: B027 - most tasks have nothing to restore
        """Restore the task's own state, such as chosen thresholds, from a checkpoint's card."""

    def hub_card(self) -> dict[str, Any]:
        """The same as `from_pretrained` reads it from `config.json`."""
        card: dict[str, Any] = self.card()
        config: Any = self.model.config
        cfg = {key: value for key, value in card.items() if key not in ("task", "name", "model", "classes")}
        cfg |= {"num_classes": len(card["classes"]), "label_names": card["classes"]}
        cfg |= {key: card["preprocess"][key] for key in ("mean", "std", "background")}
        return {**model_card(self.name, config, cfg), "task": card["task"]}

    def to(self, device: torch.device) -> None:
        """Move the network to a device, channels last."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def sampler(self, **options: Any) -> TrainSampler:
        """Order of the training images; `options` are those of `TrainSampler`."""
        return TrainSampler(len(self.train), **options)

    def training_samples(self, count: int) -> list[tuple[str, Image.Image]]:
        """Training samples of the first epoch as the network is given them: caption and image of each.

        Taken evenly from the whole set; images that cannot be read are left out.
        """
        indices = np.unique(np.linspace(0, len(self.train) - 1, count).astype(int)) if len(self.train) else ()
        samples = []
        for index in indices:
            try:
                tensor, target, _ = self.train[Sample(0, int(index))]
            except MetaFormerError:  # training says so when it comes there
                continue
            samples.append(self.draw_sample(self.pixels(tensor), target))
        return samples

    def pixels(self, image: Tensor) -> Image.Image:
        """A normalized image (3, H, W), or the last of its views, in RGB."""
        image = image[-1] if image.dim() == 4 else image
        mean, std = (
            torch.tensor(value)[:, None, None] for value in (self.preprocess.mean, self.preprocess.std)
        )
        values = (image * std + mean).clamp(0, 1) * 255
        return Image.fromarray(values.round().byte().permute(1, 2, 0).contiguous().numpy())

    def draw_sample(self, image: Image.Image, target: Any) -> tuple[str, Image.Image]:
        """Caption and image of a sample; by default its class, or its classes."""
        if isinstance(target, Tensor) and target.dim():
            return ", ".join(self.classes[k] for k in target.nonzero()[:, 0].tolist()) or "–", image
        return self.classes[int(target)], image

    def names(self, batch: Batch) -> list[str]:
        """Image files of a batch."""
        return [str(self.train.source.path(int(index))) for index in batch.indices]

    def evaluate(self, forward: Forward) -> Report:
        """Evaluate on the validation data."""
        return self.evaluation.run(forward)

    def close(self) -> None:
        """Stop the worker processes of the evaluation."""
        self.evaluation.close()


class TaskExplain(ABC):
    """What is explained of the networks of a task."""

    has_places: ClassVar[bool] = False
    """Whether a score is that of a place, so that maps weigh each position by its own gradient."""

    def input(self, model: "LoadedModel", image: Image.Image) -> Input:
        """An RGB image as the network is given it, on its device."""
        tensor = model.preprocess.transform()(image).to(model.device)
        region = model.preprocess.input_region(*image.size)
        return Input(tensor[None], tensor.shape[-2:], region, (image.height, image.width))

    @abstractmethod
    def find(
        self, model: "LoadedModel", image: Image.Image, count: int, box: Box | None = None
    ) -> Sequence[Subject]:
        """What the network finds in an RGB image, the surest or largest first.

        Args:
            model: the network.
            image: the image.
            count: how much of it, at most.
            box: in the image's pixels: find what is in it.

        Raises:
            ConfigError: a box of a task without places.
        """

    @abstractmethod
    def score(self, model: "LoadedModel", given: Input, index: int, box: Box | None = None) -> Score:
        """The score that is explained.

        Args:
            model: the network.
            given: its input.
            index: the class.
            box: in pixels of the input; None for the whole image.

        Raises:
            ConfigError: a box of a task without places; when it is called, a class that is not there.
        """

    @abstractmethod
    def claims(self, example: Mapping[str, Any], classes: Sequence[str]) -> Sequence[Claim]:
        """What the network said of an example of its evaluation and what is true, where these differ."""


@dataclass(frozen=True)
class LoadedModel:
    """A network with its classes, its preprocessing and what else its checkpoint says of it."""

    spec: "TaskSpec"
    name: str
    model: nn.Module
    preprocess: Any
    """How an image becomes input: `Preprocess`, or the task's own."""
    classes: tuple[str, ...] | None = None
    """Class names; None where they are not known."""
    metadata: Any = None
    """What the task keeps beside them, such as a palette or thresholds."""
    config: TrainConfig | None = None
    """The run that it comes from."""
    held_out: str | None = None
    """`digest` of the images that the run held out of its training split, where it did."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is a value
    amp: str = "none"

    @property
    def task(self) -> str:
        """Name of its task, such as `classify`."""
        return self.spec.name

    @property
    def num_classes(self) -> int:
        """Number of classes that the network distinguishes."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names; numbers where none are known."""
        return self.classes or self.spec.default_classes(self.num_classes)

    def forward(self, images: Tensor, *sizes: Any) -> Any:
        """The network's outputs for images (B, 3, H, W), computed on its device in its precision."""
        with autocast(self.device, self.amp):
            return self.spec.forward(self.model)(images.to(self.device, non_blocking=True), *sizes)

    def to(self, device: torch.device, amp: str) -> "LoadedModel":
        """The same on a device, in a precision, in evaluation mode.

        Raises:
            ConfigError: mixed precision of an exported file.
        """
        if amp != "none" and isinstance(self.model, ExportedNetwork):
            raise ConfigError(f"amp: {self.name} is an exported file with types of its own: leave amp out")
        model = self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, model=model.eval(), device=device, amp=amp)

    def with_preprocess(self, **fields: Any) -> "LoadedModel":
        """The same with some fields of the preprocessing changed; None leaves a field as it is.

        Raises:
            ConfigError: a value out of range, or a field that the task's preprocessing lacks.
        """
        changes = {name: value for name, value in fields.items() if value is not None}
        if missing := [name for name in changes if not hasattr(self.preprocess, name)]:
            raise ConfigError(f"{', '.join(missing)}: no option of {self.spec.title} ({self.name})")
        return replace(self, preprocess=replace(self.preprocess, **changes))

    @property
    def options(self) -> Any:
        """The task's section of the run's configuration, or of the default one."""
        return getattr(self.config or TrainConfig(), self.spec.section)

    def location(self, data: str | Path | None, split: str | None) -> tuple[str | Path, str]:
        """Folder of the data set to evaluate on, and the split: those given, or the run's own, or `val`.

        Raises:
            ConfigError: no folder is known.
        """
        if data is None and self.config is None:
            raise ConfigError(f"data: give the folder of the data set to evaluate {self.name} on")
        run = (self.config or TrainConfig()).data
        return run.root if data is None else data, split or run.val

    def own_part(
        self,
        data: str | Path | None,
        split: str | None,
        open_parts: Callable[[TrainConfig], tuple[D, D] | None],
    ) -> D | None:
        """Held-out or training part of the data that a run divided itself; None where it is not asked for.

        Args:
            data: folder of the data set; None for the run's own.
            split: its split; None for the held-out part.
            open_parts: opens both parts of a run's data, or gives None where it has splits.

        Raises:
            DataError: the data set has changed, so that other images would be held out.
        """
        config = self.config
        if data is not None or config is None or split not in (None, config.data.train):
            return None
        parts = open_parts(config)
        if parts is None:
            return None
        if self.held_out is not None:
            check_division(parts[1], self.held_out)
        return parts[split is None]

    def check_classes(self, classes: Sequence[str], where: object) -> None:
        """Compare the network's number of classes with a data set's.

        One line says where their order alone matches them, since the network knows no names.

        Raises:
            ConfigError: they differ.
        """
        if len(classes) != self.num_classes:
            raise ConfigError(f"{where}: {len(classes)} classes, but {self.name} has {self.num_classes}")
        if self.classes is None:
            self.log_order(where, classes, "brings no class names")

    def log_order(self, where: object, classes: Sequence[str], why: str) -> None:
        """Say in one line that classes are matched by their order alone."""
        shown = ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
        _log.warning(
            "%s: classes (%s) are matched by their order alone: %s %s; --class-names names them",
            where,
            shown,
            self.name,
            why,
        )


def model_fields(network: ModelConfig, **defaults: Any) -> dict[str, Any]:
    """Fields of `MetaFormerConfig` that a run sets: defaults, its overrides, mixers, stochastic depth.

    Raises:
        ConfigError: an override that has a field of its own.
    """
    for name in ("num_classes", "drop_path_rate"):
        if name in network.overrides:
            raise ConfigError(f"model.overrides: {name} has a field of its own, model.{name}")
    fields: dict[str, Any] = {**defaults, **network.overrides, "drop_path_rate": network.drop_path_rate}
    if network.mixers is not None:
        fields["mixers"] = network.mixers if isinstance(network.mixers, str) else tuple(network.mixers)
    return fields


def load_initial_weights(model: MetaFormer | DenseNetwork, network: ModelConfig) -> None:
    """Load a run's checkpoint or published weights, and enable activation checkpointing.

    A file of a backbone leaves neck and heads random, one of other classes the last layers; one of another
    grid is resampled.

    Raises:
        DownloadError: the published weights could not be fetched.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    published = network.pretrained and network.checkpoint is None
    weights = InitialWeights(
        pretrained=published, checkpoint_path=network.checkpoint, classifier="reset", ema=network.ema
    )
    source = find_source(network.name) if published else None
    report = weights.load_into(model, source, grid="interpolate")
    vars(model)["load_report"] = report  # for what a run says at its start
    if network.grad_checkpointing:
        model.set_grad_checkpointing(network.grad_checkpointing)


def divide_run(config: TrainConfig, whole: D, labels: Sequence[int]) -> tuple[D, D]:
    """Training and held-out part of a run's training split, by `data.val_fraction` and the seed.

    Raises:
        ConfigError: an expression for groups that is none.
        DataError: a path that it does not match, or a part without images.
    """
    assert config.data.val_fraction is not None
    return divide(whole, labels, config.data.val_fraction, config.seed, config.data.group)


def check_num_classes(config: TrainConfig, classes: int, where: object) -> None:
    """Compare `model.num_classes` with the classes of the training data.

    Raises:
        ConfigError: it is another number.
    """
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {where} holds {classes} classes: "
            "leave the field out"
        )


def numbered_classes(count: int) -> tuple[str, ...]:
    """Class names where none are known: their numbers."""
    return tuple(map(str, range(count)))


class BuildTask(Protocol):
    """Open the data of a run and build network, loss and evaluation on its device."""

    def __call__(self, config: TrainConfig, world: World, stop: Stop | None = None) -> Task: ...


class CreateModel(Protocol):
    """A network by its published name, or None where the task has none of this name."""

    def __call__(
        self,
        name: str,
        checkpoint: str | Path | None = None,
        num_classes: int | None = None,
        data: tuple[str | Path, str] | None = None,
        ema: bool | None = None,
    ) -> nn.Module | None: ...


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Everything the library knows of a task; `TASKS` has one for each.

    The options of `evaluation`, `predictor`, `write` and `check_data` are their keyword-only arguments; the
    command line's options, its help and its refusals are made from their signatures and docstrings.
    """

    name: str
    """What configurations and checkpoints call it, such as `detect`."""
    title: str
    """What people call it, such as "object detection"."""
    section: str
    """The section of `TrainConfig` that only this task reads."""
    unused: Mapping[str, Any] = field(default_factory=dict)
    """Fields of shared sections that this task does not use, with the value that switches each off."""
    check_config: Callable[[TrainConfig], None]
    """Raises ConfigError for values of its section that cannot be."""
    build: BuildTask
    forward: Callable[[nn.Module], Forward]
    """What is evaluated of a network: itself or one of its methods."""
    load: Callable[["TaskSpec", Mapping[str, Any]], LoadedModel]
    """A checkpoint's card to a network, its weights still random."""
    create: CreateModel | None = None
    """None where the task has no published networks."""
    describe: Callable[["TaskSpec", nn.Module, str], LoadedModel]
    """A network of `create` or `from_pretrained`, and its name, with what its `pretrained_cfg` says of it."""
    default_classes: Callable[[int], tuple[str, ...]] = numbered_classes
    """Class names for a network whose classes are not known, by their number."""
    evaluation: Callable[..., Evaluation]
    """(LoadedModel, data, split, batch_size=, workers=, **options) to an evaluation."""
    predictor: Callable[..., Predict]
    """(LoadedModel, batch_size=, workers=, **options) to a predictor."""
    served: Mapping[str, Any] = field(default_factory=dict)
    """Options of `predictor` that `metaformer serve` sets where its caller does not."""
    write: Callable[..., Iterator[str]]
    """(predictions, out, LoadedModel, **options): write files; yields lines to print."""
    export: TaskExport
    """How its networks are written for programs without PyTorch, and read back."""
    explain: TaskExplain
    """Which score of its networks a map explains."""
    report: Callable[[Mapping[str, Any], TrainConfig, Maps], TaskReport]
    """A best checkpoint's state, its configuration and maps of its errors to what the report page shows."""
    fit_data: Callable[[TrainConfig], Mapping[str, Any]] | None = None
    """Sizes and batch that fit the training data of a configuration: dotted fields and their values."""
    check_data: Callable[..., CheckReport]
    """(root, splits, workers=, **options): all that is wrong with a data set."""
    recognize: Callable[[str | Path], Certainty]
    """How surely a folder holds its data set."""
    write_demo: WriteDemo
    """Write its demo data set."""
