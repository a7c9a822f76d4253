"""What tasks share that classify whole images: network, card, preprocessing, evaluation, predictions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL.Image import Image
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.color import Color
from metaformer.config import TrainConfig
from metaformer.data.augment import train_transform
from metaformer.data.class_lists import read_names
from metaformer.data.dataset import AugmentedDataset, BadSample, Batch, SampleOrError, Source
from metaformer.data.loader import Loader, Stop
from metaformer.data.preprocess import Preprocess
from metaformer.data.sampler import EvalSampler
from metaformer.distributed import World, lockstep
from metaformer.errors import BadImage, ConfigError, MetaFormerError, TrainingError
from metaformer.factory import create_model
from metaformer.models.build import build_network
from metaformer.report.blocks import Section
from metaformer.report.page import TaskReport
from metaformer.serialize import Text, decode, shown
from metaformer.tasks.base import (
    Evaluation,
    Forward,
    LoadedModel,
    Loading,
    Task,
    TaskSpec,
    load_initial_weights,
    loading,
    model_fields,
)
from metaformer.tasks.outputs import (
    FILES,
    LINES,
    Legend,
    Output,
    Prediction,
    csv_writer,
    drawn_output,
    jsonl_writer,
    write_outputs,
)
from metaformer.tasks.stream import ImageList, OnBad, raise_bad
from metaformer.visualize.canvas import draw_bars
from metaformer.weights.card import model_card


def build_classifier(config: TrainConfig, classes: int) -> MetaFormer:
    """The network of a run for this many classes, with own or published weights where asked for.

    A file of other classes gives everything but its last layer; one of another grid is resampled.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    network, size = config.model, config.data.image_size
    fields = model_fields(network, head_dropout=network.head_dropout)
    if not network.pretrained or network.checkpoint is not None:
        fields.setdefault("image_size", (size, size))  # published weights bring the grid of their training
    model = create_model(network.name, num_classes=classes, **fields)
    assert isinstance(model, MetaFormer)
    load_initial_weights(model, network)
    return model


def preprocessing(config: TrainConfig) -> Preprocess:
    """How a run's images become input in evaluation."""
    return Preprocess(
        config.data.image_size,
        config.evaluate.crop,
        config.evaluate.interpolation,
        config.data.mean,
        config.data.std,
        config.data.background_color,
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


class ClassifierTask(Task):
    """Training of a network that gives logits (B, K)."""

    model: MetaFormer
    preprocess: Preprocess

    def hub_card(self) -> dict[str, Any]:
        """`config.json`, with `pretrained_cfg` in timm's terms."""
        pretrained_cfg = {
            **self.model.pretrained_cfg,
            "url": "",
            "tag": "",
            "num_classes": len(self.classes),
            "label_names": list(self.classes),
            "input_size": [3, self.preprocess.image_size, self.preprocess.image_size],
            "crop_pct": self.preprocess.crop,
            "interpolation": self.preprocess.interpolation,
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            "background": self.preprocess.background and list(self.preprocess.background),
            **self.metadata(),
        }
        return model_card(self.name, self.model.config, pretrained_cfg)


def load(spec: TaskSpec, card: Mapping[str, Any]) -> LoadedModel:
    """A classifier from a checkpoint's card, its weights random.

    Raises:
        ConfigError: the network of a study's control, which is timm's.
    """
    network = card["model"]
    if isinstance(network, Mapping) and "timm" in network:
        name = shown(network["timm"], quote=False)
        raise ConfigError(
            f"holds {name} of timm, the control of a study, which has its figures: other commands take "
            "networks of this library"
        )
    model = build_network(MetaFormerConfig.from_dict(network))
    preprocess = Preprocess.from_dict(card["preprocess"])
    classes = read_names(card["classes"], model.num_classes)
    return LoadedModel(spec, decode(Text, card["name"], "name"), model, preprocess, classes)


def describe(spec: TaskSpec, model: nn.Module, name: str) -> LoadedModel:
    """A classifier with the preprocessing and classes of its `pretrained_cfg`.

    Raises:
        ConfigError: a backbone without a classifier.
    """
    if not isinstance(model, MetaFormer):
        raise ConfigError(f"{name}: a backbone without a classifier")
    names = model.pretrained_cfg.get("label_names")
    preprocess = Preprocess.from_pretrained_cfg(model.pretrained_cfg)
    classes = read_names(names, model.num_classes) if names else None
    return LoadedModel(spec, name, model, preprocess, classes)


def average_views(forward: Forward, images: Tensor, flip: bool = False) -> Tensor:
    """Logits (B, K) of images (B, 3, H, W), averaged over crops (B, crops, 3, H, W) and mirrored images."""
    views = images.flatten(0, 1) if images.ndim == 5 else images
    logits = forward(views)
    if flip:
        logits = (logits + forward(views.flip(-1))) / 2
    return logits.unflatten(0, images.shape[:2]).mean(dim=1) if images.ndim == 5 else logits


class ClassifierOptions(Loading, total=False):
    """Arguments of `ClassifierEvaluation`."""

    batch_size: int
    flip: bool
    crops: int


def evaluation_options(config: TrainConfig, world: World, stop: Stop | None) -> ClassifierOptions:
    """How a run evaluates; `stop` cuts it."""
    return {
        "batch_size": config.data.eval_batch_size,
        "flip": config.evaluate.flip,
        "crops": config.evaluate.crops,
        **loading(config, world, stop),
    }


class ClassifierEvaluation(Evaluation):
    """Evaluation of logits (B, K) of whole images.

    Args:
        folder: images and labels.
        preprocess: how images become input.
        batch_size: images per batch and rank.
        flip: average the logits with those of the mirrored image.
        crops: 1 for the center crop, 5 to average it with the corners.
        loading: how images are read.
    """

    def __init__(
        self,
        folder: Any,
        preprocess: Preprocess,
        *,
        batch_size: int = 128,
        flip: bool = False,
        crops: int = 1,
        **loading: Unpack[Loading],
    ) -> None:
        dataset = AugmentedDataset(folder, preprocess.transform(crops), background=preprocess.background)
        super().__init__(dataset, batch_size, **loading)
        self.folder, self.flip = folder, flip

    def logits(self, forward: Forward) -> Iterator[tuple[Tensor, Batch]]:
        """Logits on the CPU of each batch of this rank, in step with the others.

        Raises:
            TrainingError: logits that are not finite; the message names the image.
            Interrupted: `stop` was true, on whatever rank.
        """
        return lockstep(self._logits(forward), self.most)

    def _logits(self, forward: Forward) -> Iterator[tuple[Tensor, Batch]]:
        for batch in self.loader:
            logits = average_views(forward, batch.images, self.flip).float().cpu()
            finite = logits.isfinite().all(dim=1)
            if not finite.all():
                bad = int(batch.indices[~finite][0])
                raise TrainingError(f"{self.folder.path(bad)}: the model's logits are not finite")
            yield logits, batch


def task_report(
    state: Mapping[str, Any], sections: Sequence[Section], python: str, names: Mapping[str, str] | None = None
) -> TaskReport:
    """What the page of a run shows.

    Args:
        state: the best checkpoint's.
        sections: sections of the page.
        python: how the network is used.
        names: what the page calls the metrics.
    """
    preprocess, names = state["card"]["preprocess"], names or {}
    size = preprocess["image_size"]
    return TaskReport(
        metrics={name: names.get(name, name) for name in state["metrics"]},
        counts={"images": state["evaluation"]["images"]},
        sections=sections,
        preprocess=f"{size} pixels, crop {preprocess['crop']}, {preprocess['interpolation']}",
        commands="metaformer predict BEST IMAGES\nmetaformer evaluate BEST --data FOLDER",
        python=python,
        input_size=f", {size}×{size} pixels",
    )


class _Images(AugmentedDataset):
    """Images to predict on: a batch may hold none that can be read."""

    def collate(self, items: list[SampleOrError]) -> Batch | MetaFormerError:
        """Collate samples to a batch, which is empty where all of them are bad."""
        bad = tuple(item for item in items if isinstance(item, BadSample))
        if len(bad) < len(items):
            return super().collate(items)
        return Batch(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64), bad)


class BatchPredictor:
    """Predictions in batches, from images that all become input of one size.

    Args:
        model: gives logits (B, K).
        batch_size: images at once.
        workers: processes that read images; 0 reads in this one.
        image_size: height and width of the network's input, in pixels (default: the checkpoint's).
        flip: average with the mirrored image.
        crops: 1 for the center crop, 5 to average it with the corners.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch_size: int = 32,
        workers: int = 0,
        image_size: int | None = None,
        flip: bool = False,
        crops: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: it must be at least 1")
        self.model = model.with_preprocess(image_size=image_size)
        self.transform = self.model.preprocess.transform(crops)
        self.background: Color | None = self.model.preprocess.background
        self.classes, self.batch_size, self.workers, self.flip = model.class_names, batch_size, workers, flip
        self.settings: dict[str, Any] = {"flip": flip, "crops": crops}

    @property
    def legend(self) -> Legend:
        """Nothing: bars have no colors of their own."""
        return Legend()

    def predict(self, source: ImageList, on_bad: OnBad = raise_bad) -> Iterator[Prediction[Any]]:
        """Predictions in order; `on_bad` gets the error of each image that cannot be read."""
        sampler = EvalSampler(len(source), batch_size=self.batch_size)
        for batch, results in self.batches(source, sampler, skip_bad=True):
            found: dict[int, Any] = dict(zip(batch.indices.tolist(), results, strict=True))
            bad = {one.index: one.reason for one in batch.bad}
            for index in sorted((*found, *bad)):
                if index in bad:  # after the results before it
                    path = source.path(index)
                    on_bad(BadImage(path, bad[index].removeprefix(f"{path}: ")))
                    continue
                result = found[index]
                image = None if result.path else source.image(index, self.background)
                yield Prediction(result, image, background=self.background)

    def predict_images(self, images: Sequence[Image]) -> list[Any]:
        """Results of RGB images in memory, all at once."""
        inputs = torch.stack([self.transform(image) for image in images])
        return self.results([""] * len(images), self._logits(inputs))

    def batches(
        self, source: Source, sampler: EvalSampler, *, stop: Stop | None = None, skip_bad: bool = False
    ) -> Iterator[tuple[Batch, list[Any]]]:
        """Results of the images that a sampler names, batch by batch.

        Args:
            source: the images.
            sampler: which of them, in which order.
            stop: asked again and again; once it is true, waiting for data ends.
            skip_bad: leave out images that cannot be read, and list them in the batch.

        Raises:
            BadImage: an image cannot be read.
            Interrupted: `stop` was true.
        """
        loader = Loader(
            _Images(source, self.transform, background=self.background),
            sampler,
            workers=min(self.workers, len(source)),
            pin_memory=self.model.device.type == "cuda",
            stop=stop,
            skip_bad=skip_bad,
        )
        try:
            for batch in loader:
                paths = [str(source.path(index)) for index in batch.indices.tolist()]
                yield batch, self.results(paths, self._logits(batch.images)) if paths else []
        finally:
            loader.close()

    def results(self, paths: list[str], logits: Tensor) -> list[Any]:
        """Results of images from their logits (B, K); each has a `path`, `to_row()` and `bars()`."""
        raise NotImplementedError

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        return average_views(self.model.forward, images, self.flip).float()


def write_predictions(
    predictions: Iterable[Prediction[Any]],
    out: str | Path | None,
    model: LoadedModel | None = None,
    *,
    draw: bool = False,
) -> Iterator[str]:
    """Write predictions of whole images as JSON lines and CSV; yields the lines to print.

    Args:
        predictions: what is written.
        out: a file that ends in .jsonl or .csv, or a folder for both; None yields JSON lines.
        model: the network.
        draw: also write the images with the predictions drawn on them, in the folder `images`.

    Raises:
        ConfigError: `draw` without `out`.
        OutputError: `out` cannot be written to.
    """

    def outputs(target: Path) -> list[Output]:
        ending = target.suffix.lower() if target.suffix.lower() in FILES else ""
        chosen = []
        if ending != ".csv":
            lines = target if ending else target / LINES
            chosen.append(Output(jsonl_writer(lines), "predictions", lines))
        if ending != ".jsonl":
            table = target if ending else target / "predictions.csv"
            chosen.append(Output(csv_writer(table), "predictions", table))
        if draw:
            folder = target.parent if ending else target
            chosen.append(
                drawn_output(folder, lambda one, moving: draw_bars(one.pixels(), one.result.bars()))
            )
        return chosen

    return write_outputs(predictions, out, outputs, needs_folder={"draw": draw}, suffixes=FILES)
