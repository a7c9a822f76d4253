"""A network with all that is needed to use it: task, classes and preprocessing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.checkpoint.checkpoint import STATE, Checkpoint, read_checkpoint
from metaformer.checkpoint.manifest import MANIFEST
from metaformer.checkpoint.run_dir import RunDir, find_checkpoint
from metaformer.config import TrainConfig
from metaformer.data.class_lists import category_ids, class_list, palette, palette_for
from metaformer.data.preprocess import Preprocess
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError, DataError, WeightsError
from metaformer.inference.int8_model import NETWORK, Int8Network
from metaformer.models.base import DenseNetwork, answer_of, autocast
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.serialize import from_dict
from metaformer.tasks.detection.preprocess import DetectionPreprocess

Color = tuple[int, int, int]
Look = Preprocess | DensePreprocess | DetectionPreprocess
"""How images become input."""
DOES = {
    "classify": "tells classes of images apart",
    "segment": "tells classes of pixels apart",
    "detect": "finds objects",
}
"""What the networks of each task do, in errors."""


@dataclass(frozen=True)
class LoadedModel:
    """What a checkpoint, or a published name, stands for."""

    name: str
    model: nn.Module
    preprocess: Look
    classes: tuple[str, ...] | None
    """Class names; None where nobody wrote them down."""
    task: str = "classify"
    """What it does: `classify`, `segment` or `detect`."""
    palette: tuple[Color, ...] = ()
    """In segmentation and detection a color for each class."""
    category_ids: tuple[int, ...] = ()
    """In detection the number of each class in COCO's files."""
    config: TrainConfig | None = None
    """The run that it comes from."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is a value
    amp: str = "none"

    def forward(self, images: Tensor, *sizes: Any) -> Any:
        """Logits (B, K), in segmentation (B, K, H / 4, W / 4), or objects of images (B, 3, H, W)."""
        with autocast(self.device, self.amp):
            return answer_of(self.model)(images.to(self.device, non_blocking=True), *sizes)

    def placed(self, device: torch.device, amp: str) -> "LoadedModel":
        """The same on a device, in a precision, ready for use."""
        model = self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, model=model.eval(), device=device, amp=amp)

    def looking(
        self, image_size: int | None = None, crop: float | None = None, interpolation: str | None = None
    ) -> "LoadedModel":
        """The same with other preprocessing; None leaves a value as it is.

        Raises:
            ConfigError: a value that cannot be, or that the task has no use for.
        """
        asked = {"image_size": image_size, "crop": crop, "interpolation": interpolation}
        given = {name: value for name, value in asked.items() if value is not None}
        if given and self.task != "classify":
            raise ConfigError(f"{', '.join(given)}: for classification; {self.name} {DOES[self.task]}")
        return replace(self, preprocess=replace(self.preprocess, **given))  # type: ignore[arg-type]


def load_model(
    source: str | Path,
    checkpoint: str | Path | None = None,
    *,
    classes: str | Path | Sequence[str] | None = None,
    num_classes: int | None = None,
    raw: bool = False,
) -> LoadedModel:
    """Open a run, a checkpoint directory, or a model by name.

    Args:
        source: a run directory (its best weights), a checkpoint directory, what `save_pretrained` wrote, or a
            model name: its published weights, or those of `checkpoint`.
        checkpoint: a weight file in any published format, for a model name.
        classes: class names, or a file with one in each line, where the source does not know them.
        num_classes: outputs of the classifier for a model name; as published when not given.
        raw: take the raw weights of a checkpoint that also holds their average.

    Raises:
        ConfigError: no such run, checkpoint or model.
        WeightsError: the weights cannot be read or do not fit.
    """
    names = read_classes(classes)
    path = Path(source)
    if path.is_dir():
        if checkpoint is not None:
            raise ConfigError(
                f"checkpoint {checkpoint}: {source} brings its own weights; leave one of them out"
            )
        found = find_checkpoint(path)
        # either file makes it a checkpoint, if perhaps a damaged one
        ours = any((found / name).exists() for name in (MANIFEST, STATE))
        bundle = _saved(read_checkpoint(found), raw) if ours else _published(path)
    else:
        bundle = _named(str(source), checkpoint, len(names) if names else num_classes)
    if names is None:
        return bundle
    outputs = bundle.model.num_classes
    if len(names) != outputs:
        raise ConfigError(f"classes: {len(names)} names, but {source} tells {outputs} classes apart")
    if bundle.classes not in (None, names) and sorted(bundle.classes or ()) == sorted(names):
        raise ConfigError(f"classes: the names of {source} in another order; leave them out, it knows them")
    return replace(bundle, classes=names)


def read_classes(classes: str | Path | Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names as they are, or from a file with one in each line.

    Raises:
        DataError: the file cannot be read, or holds no name.
    """
    if classes is None or not isinstance(classes, str | Path):
        return None if classes is None else tuple(classes)
    try:
        names = tuple(line.strip() for line in Path(classes).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{classes}: cannot be read ({error})") from error
    if not any(names):
        raise DataError(f"{classes}: holds no class name; write one in each line")
    return tuple(name for name in names if name)


def _saved(saved: Checkpoint, raw: bool) -> LoadedModel:
    try:
        card = saved.state["card"]
        if "int8" in card:
            return _quantized(saved)
        config = from_dict(saved.state["config"])
        task, name, classes = str(card["task"]), str(card["name"]), tuple(card["classes"])
        if task not in MODELS:
            raise WeightsError(f"{saved.directory}: of a task that this version does not know, {task!r}")
        model, preprocess = MODELS[task](card)
        palette = tuple(_color(color) for color in card.get("palette", ()))
        if not palette and task != "classify":  # of a run before its card held them
            palette = palette_for(classes)
        category_ids = tuple(int(number) for number in card.get("category_ids", ()))
    except KeyError as error:
        raise WeightsError(f"{saved.directory}: its state lacks {error}") from error
    average = saved.has("ema") and config.ema.evaluate and not raw
    saved.load(model, "ema" if average else "model")
    return LoadedModel(name, model, preprocess, classes, task, palette, category_ids, config)


def _quantized(saved: Checkpoint) -> LoadedModel:
    """A classifier as `metaformer.quantize` writes it."""
    card, run = saved.state["card"], saved.state["config"]
    classes = tuple(card["classes"]) if card["classes"] else None
    network = Int8Network(saved.directory / NETWORK)
    preprocess = Preprocess.from_dict(card["preprocess"])
    return LoadedModel(
        str(card["name"]), network, preprocess, classes, config=from_dict(run) if run else None
    )


def _classifier(card: Mapping[str, Any]) -> tuple[nn.Module, Preprocess]:
    return MetaFormer(MetaFormerConfig.from_dict(card["model"])), Preprocess.from_dict(card["preprocess"])


def _segmenter(card: Mapping[str, Any]) -> tuple[nn.Module, DensePreprocess]:
    return Segmenter(SegmenterConfig.from_dict(card["model"])), DensePreprocess.from_dict(card["preprocess"])


def _detector(card: Mapping[str, Any]) -> tuple[nn.Module, DetectionPreprocess]:
    from metaformer.models.detection.build import build_detector

    config = DetectorConfig.from_dict(card["model"])
    return build_detector(config), DetectionPreprocess.from_dict(card["preprocess"])


MODELS: dict[str, Callable[[Mapping[str, Any]], tuple[nn.Module, Look]]] = {
    "classify": _classifier,
    "segment": _segmenter,
    "detect": _detector,
}
"""How a checkpoint's card of each task becomes a network, its weights still random, and preprocessing."""


def _color(values: Sequence[int]) -> Color:
    red, green, blue = values
    return int(red), int(green), int(blue)


def _published(directory: Path) -> LoadedModel:
    """A directory as `save_pretrained` writes it."""
    from metaformer.weights.hub import from_pretrained

    if RunDir(directory).begun:
        raise WeightsError(f"{directory}: this run has no checkpoint yet")
    if not (directory / "config.json").exists():
        raise WeightsError(
            f"{directory}: neither a run, a checkpoint, nor a model that save_pretrained wrote"
        )
    model = from_pretrained(directory)
    names = model.pretrained_cfg.get("label_names")
    classes = tuple(names) if names else None
    if isinstance(model, DenseNetwork):
        return _dense(directory.name, model, classes)
    if not isinstance(model, MetaFormer):
        raise ConfigError(f"{directory}: gives feature maps, no classes")
    return LoadedModel(directory.name, model, Preprocess.from_pretrained_cfg(model.pretrained_cfg), classes)


def _dense(name: str, model: DenseNetwork, classes: tuple[str, ...] | None) -> LoadedModel:
    """A dense network with what its card says of it; a published one has its data set's names and numbers."""
    card, task = model.pretrained_cfg, "segment" if isinstance(model, Segmenter) else "detect"
    data = class_list(str(card["data"])) if "data" in card else None
    if classes is None and data is not None and len(data.names) == model.num_classes:
        classes = data.names
    reader = DensePreprocess if task == "segment" else DetectionPreprocess
    look = card.get("preprocess")
    colors = palette_for(classes) if classes else palette(model.num_classes)
    told = tuple(_color(color) for color in card.get("palette", ()))
    ids = tuple(int(number) for number in card.get("category_ids", category_ids(classes or ())))
    preprocess = reader.from_dict(look) if look else reader()
    return LoadedModel(
        name, model, preprocess, classes, task, told or colors, ids if task == "detect" else ()
    )


def _named(name: str, checkpoint: str | Path | None, num_classes: int | None) -> LoadedModel:
    from metaformer.factory import (
        create_detector,
        create_model,
        create_segmenter,
        is_detector,
        is_model,
        is_segmenter,
    )

    if is_segmenter(name):
        segmenter = create_segmenter(
            name,
            num_classes=num_classes or 150,
            pretrained=checkpoint is None,
            checkpoint_path=checkpoint,
        )
        return _dense(name, segmenter, None)
    if is_detector(name):
        detector = create_detector(
            name,
            num_classes=num_classes or 80,
            pretrained=checkpoint is None,
            checkpoint_path=checkpoint,
        )
        return _dense(name, detector, None)
    if not is_model(name) and ("/" in name or Path(name).exists()):
        file = Path(name).is_file()
        hint = f"; a file of weights goes beside a model's name: MODEL --checkpoint {name}" if file else ""
        raise ConfigError(f"{name}: neither a run or checkpoint directory nor a model name{hint}")
    model = create_model(
        name, pretrained=checkpoint is None, checkpoint_path=checkpoint, num_classes=num_classes
    )
    return LoadedModel(name, model, Preprocess.from_pretrained_cfg(model.pretrained_cfg), None)
