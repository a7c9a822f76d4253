"""Data loaders of this library, timm and torchvision, as each library builds them, and images to load."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metaformer.config import AugmentConfig, DataConfig, TrainConfig
from metaformer.errors import ConfigError, DataError, UnknownName
from metaformer.process import cores

OURS: Final = "ours"
PIPELINES: Final = {
    "train": "the ImageNet recipes' augmentation: random crop, flip, RandAugment, erasing",
    "plain": "random crop and flip alone, the same work in each library",
    "evaluation": "resize, center crop",
}
"""Augmentation or preprocessing before normalization."""
CLASSES: Final = 4
"""Class folders that the images are written into."""
SIZE: Final = (500, 375)
"""Width and height of most of ImageNet's images."""
QUALITY: Final = 90
"""JPEG quality: files of about 50 kB, where ImageNet's have 110 kB."""


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """Conditions of the comparison."""

    root: Path | None = None
    """Directory with images at any depth; generated images of ImageNet's size by default."""
    images: int = 512
    """Images in a round, rounded down to whole batches, spread evenly over the directory."""
    pipelines: tuple[str, ...] = tuple(PIPELINES)
    """Keys of `PIPELINES`."""
    batch: int = 64
    """Batch size."""
    size: int = 224
    """Height and width of the tensors."""
    workers: int | None = None
    """Worker processes; one for each core by default, 0 for the main process alone."""
    rounds: int = 10
    """Measurements of each loader."""
    device: str = "auto"
    """Device of batches and model: `auto`, `cpu`, `cuda` or `cuda:N`."""
    model: str = "poolformer_s12"
    """Model whose training step is measured."""
    model_speed: float | None = None
    """Images per second of a model's training, instead of measuring one."""
    step_batch: int | None = None
    """Batch size of the training step; 8 on a CPU and `batch` elsewhere by default."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "size", "rounds", "step_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")
        if self.workers is not None and not 0 <= self.workers <= cores():
            raise ConfigError(f"workers: {self.workers} must lie between 0 and {cores()}, the cores here")
        if self.model_speed is not None and not self.model_speed > 0:
            raise ConfigError(f"model_speed: {self.model_speed} must be above 0")
        for pipeline in self.pipelines:
            if pipeline not in PIPELINES:
                raise UnknownName("pipeline", pipeline, PIPELINES)
        if self.images < self.batch:
            raise ConfigError(f"images: {self.images} do not fill one batch of {self.batch}")

    @property
    def processes(self) -> int:
        """Worker processes."""
        return cores() if self.workers is None else self.workers


def train_config(pipeline: str, size: int) -> TrainConfig:
    """The configuration with a pipeline's augmentation."""
    bare = AugmentConfig(auto_augment=None, color_jitter=0.0, erase=0.0, interpolation="bilinear")
    augment = bare if pipeline == "plain" else AugmentConfig()
    return TrainConfig(data=DataConfig(image_size=size), augment=augment)


class Feed:
    """A loader that is read epoch by epoch.

    Args:
        loader: batches; each iteration is an epoch.
        images: moves a batch's images to the device, normalized.
        begin: called with the number of each epoch before it.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        images: Callable[[Any], Tensor],
        begin: Callable[[int], object] = lambda turn: None,
    ) -> None:
        self._loader, self._images, self._begin = loader, images, begin

    def epoch(self, turn: int) -> int:
        """Read all batches and return the number of images."""
        self._begin(turn)
        return sum(len(self._images(batch)) for batch in self._loader)

    def first(self) -> Tensor:
        """The first batch's images, on the device."""
        self._begin(0)
        return self._images(next(iter(self._loader)))

    def close(self) -> None:
        """End the workers."""
        getattr(self._loader, "close", lambda: None)()
        self._loader = ()  # PyTorch's loader ends its workers when it is deleted


def _ours(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """The loader of `metaformer train` and of its evaluations."""
    from metaformer.data.dataset import AugmentedDataset
    from metaformer.data.loader import Loader
    from metaformer.data.sampler import EvalSampler, TrainSampler
    from metaformer.data.split import open_split
    from metaformer.tasks.classifier import augmentation, preprocessing

    settings, split = train_config(pipeline, config.size), open_split(folder, "train")
    options: dict[str, Any] = {"workers": config.processes, "pin_memory": device.type == "cuda"}

    def images(batch: Any) -> Tensor:
        on_device: Tensor = batch.to(device).images
        return on_device

    if pipeline == "evaluation":
        data = AugmentedDataset(split, preprocessing(settings).transform())
        return Feed(Loader(data, EvalSampler(len(split), batch_size=config.batch), **options), images)
    sampler = TrainSampler(len(split), batch_size=config.batch)
    return Feed(
        Loader(AugmentedDataset(split, augmentation(settings)), sampler, **options), images, sampler.seek
    )


def _torchvision_tensors(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """The same with torchvision's decoder and its v2 transforms on tensors."""
    from torchvision import datasets, io
    from torchvision.transforms import v2

    steps = _compose(
        pipeline, v2, _transforms(pipeline, config.size, v2), [v2.ToDtype(torch.float32, scale=True)]
    )
    read = partial(io.decode_image, mode=io.ImageReadMode.RGB)
    return _plain_loader(datasets.ImageFolder(folder / "train", steps, loader=read), pipeline, config, device)


def _torchvision(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """Torchvision's reference training with Pillow, its default."""
    from torchvision import datasets, transforms

    to_tensor = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)]
    steps = _compose(pipeline, transforms, _transforms(pipeline, config.size, transforms), to_tensor)
    data = datasets.ImageFolder(folder / "train", steps)
    return _plain_loader(data, pipeline, config, device)


def _timm(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """Timm's loader as its training script builds it: normalized and erased on the device."""
    from timm.data import ImageDataset, create_loader

    from metaformer.data.augment import fix_posterize

    settings = train_config(pipeline, config.size)
    augment, evaluation = settings.augment, pipeline == "evaluation"
    data = ImageDataset(str(folder / "train"))
    loader = create_loader(
        data,
        input_size=(3, config.size, config.size),
        batch_size=config.batch,
        is_training=not evaluation,
        re_prob=augment.erase,
        re_mode=augment.erase_mode,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        interpolation=settings.evaluate.interpolation if evaluation else augment.interpolation,
        crop_pct=settings.evaluate.crop,
        mean=settings.data.mean,
        std=settings.data.std,
        num_workers=config.processes,
        pin_memory=device.type == "cuda",
        device=device,
    )
    for step in data.transform.transforms:
        fix_posterize(step)  # else Pillow raises within some batches
    return Feed(loader, lambda batch: batch[0])


def _transforms(pipeline: str, size: int, kit: Any) -> list[Any]:
    """A pipeline's transforms of uint8 images; `kit` is torchvision.transforms or its v2."""
    from torchvision.transforms import InterpolationMode

    settings = train_config(pipeline, size)
    if pipeline == "evaluation":
        mode = InterpolationMode(settings.evaluate.interpolation)
        edge = int(size / settings.evaluate.crop)
        return [kit.Resize(edge, interpolation=mode, antialias=True), kit.CenterCrop(size)]
    augment, mode = (
        settings.augment,
        InterpolationMode.BILINEAR,
    )  # the reference's; ours draws bilinear or bicubic
    crop = kit.RandomResizedCrop(size, augment.scale, augment.ratio, interpolation=mode, antialias=True)
    steps = [crop, kit.RandomHorizontalFlip(augment.hflip)]
    return [*steps, kit.RandAugment(magnitude=9, interpolation=mode)] if augment.auto_augment else steps


def _compose(pipeline: str, kit: Any, transforms: list[Any], to_tensor: list[Any]) -> Callable[[Any], Tensor]:
    settings = train_config(pipeline, 1)
    steps = [*transforms, *to_tensor, kit.Normalize(settings.data.mean, settings.data.std)]
    if pipeline == "train":
        steps.append(kit.RandomErasing(settings.augment.erase, value="random"))
    composed: Callable[[Any], Tensor] = kit.Compose(steps)
    return composed


def _plain_loader(data: Dataset[Any], pipeline: str, config: LoadingConfig, device: torch.device) -> Feed:
    loader = DataLoader(
        data,
        batch_size=config.batch,
        shuffle=pipeline != "evaluation",
        drop_last=pipeline != "evaluation",
        num_workers=config.processes,
        pin_memory=device.type == "cuda",
        persistent_workers=config.processes > 0,
    )
    return Feed(loader, lambda batch: batch[0].to(device, non_blocking=True))


FEEDS: Final[dict[str, Callable[[str, Path, LoadingConfig, torch.device], Feed]]] = {
    OURS: _ours,
    "timm": _timm,
    "torchvision": _torchvision,
    "torchvision tensors": _torchvision_tensors,
}
"""Library -> function that builds its loader."""


def write_image_folder(folder: Path, images: int, root: Path | None) -> int:
    """Fill `folder/train` with class folders of images, and return their number.

    Args:
        folder: an empty directory.
        images: number of images; fewer are written where `root` has fewer.
        root: directory with images at any depth, to link to; None generates images.

    Raises:
        DataError: `root` has too few images, or cannot be read.
        MissingPackage: scikit-learn, which the generated images need, is not installed.
    """
    for number in range(CLASSES):
        (folder / "train" / str(number)).mkdir(parents=True)
    return _generate(folder, images) if root is None else _link(folder, images, root)


def _path(folder: Path, number: int, suffix: str) -> Path:
    return folder / "train" / str(number % CLASSES) / f"{number:06d}{suffix}"


def _link(folder: Path, images: int, root: Path) -> int:
    from metaformer.data.folder import EXTENSIONS, files_below

    def refuse(error: DataError) -> None:
        raise error

    root = root.expanduser().resolve()
    found = [name for name in files_below(root, refuse) if Path(name).suffix.lower() in EXTENSIONS]
    if len(found) < CLASSES:
        raise DataError(f"{root}: {len(found)} images in it and below: at least {CLASSES} are needed")
    count = min(images, len(found))
    for number in range(count):
        name = found[number * len(found) // count]
        _path(folder, number, Path(name).suffix.lower()).symlink_to(root / name)
    return count


def _generate(folder: Path, images: int) -> int:
    """Random crops of scikit-learn's two photographs, at least 0.7 of their sides."""
    from PIL import Image

    from metaformer.data.demo import DigitScenes

    photos = DigitScenes(0, 5).photos
    draw = np.random.RandomState(0)
    for number in range(images):
        photo = photos[number % len(photos)]
        width, height = (int(side * draw.uniform(0.7, 1)) for side in photo.size)
        left, top = draw.randint(photo.width - width + 1), draw.randint(photo.height - height + 1)
        box = (left, top, left + width, top + height)
        image = photo.resize(SIZE, Image.Resampling.BICUBIC, box)
        image.save(_path(folder, number, ".jpg"), quality=QUALITY)
    return images
