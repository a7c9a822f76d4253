"""Loaders as their libraries build them, ready to be measured side by side."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.loading.settings import LoadingConfig, training


class Feed:
    """A loader, of which one epoch after the other is read.

    Args:
        loader: batches; each iteration is an epoch.
        images: takes a batch's images to the device, normalized.
        begin: is told the number of each epoch before it.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        images: Callable[[Any], Tensor],
        begin: Callable[[int], object] = lambda turn: None,
    ) -> None:
        self._loader, self._images, self._begin = loader, images, begin

    def epoch(self, turn: int) -> int:
        """Read all batches; gives the number of images."""
        self._begin(turn)
        return sum(len(self._images(batch)) for batch in self._loader)

    def first(self) -> Tensor:
        """The first batch's images, on the device."""
        self._begin(0)
        return self._images(next(iter(self._loader)))

    def close(self) -> None:
        """End its workers; it cannot be read again."""
        getattr(self._loader, "close", lambda: None)()
        self._loader = ()  # a loader of PyTorch's ends its workers once it is gone


def _ours(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """The loader of `metaformer train` and of its evaluations."""
    from metaformer.data.dataset import AugmentedDataset
    from metaformer.data.loader import Loader
    from metaformer.data.sampler import EvalSampler, PureSampler
    from metaformer.data.split import open_split
    from metaformer.tasks.classification.task import augmentation, preprocessing

    settings, split = training(pipeline, config.size), open_split(folder, "train")
    options: dict[str, Any] = {"workers": config.processes, "pin_memory": device.type == "cuda"}

    def images(batch: Any) -> Tensor:
        on_device: Tensor = batch.to(device).images
        return on_device

    if pipeline == "evaluation":
        data = AugmentedDataset(split, preprocessing(settings).transform())
        return Feed(Loader(data, EvalSampler(len(split), batch_size=config.batch), **options), images)
    sampler = PureSampler(len(split), batch_size=config.batch)
    return Feed(
        Loader(AugmentedDataset(split, augmentation(settings)), sampler, **options), images, sampler.seek
    )


def _timm(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """Timm's loader as its training script builds it: normalized and erased on the device."""
    from timm.data import ImageDataset, create_loader

    from metaformer.tasks.classification.transforms import fix_posterize

    settings = training(pipeline, config.size)
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
        fix_posterize(step)  # else Pillow ends it within some batches
    return Feed(loader, lambda batch: batch[0])


def _torchvision(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """Torchvision's reference training with Pillow, its default."""
    from torchvision import datasets, transforms

    change = _changes(pipeline, config.size, transforms)
    finish = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)]
    data = datasets.ImageFolder(folder / "train", _finished(pipeline, transforms, change, finish))
    return _plain_loader(data, pipeline, config, device)


def _torchvision_tensors(pipeline: str, folder: Path, config: LoadingConfig, device: torch.device) -> Feed:
    """The same with torchvision's own decoder and its second transforms, on tensors."""
    from torchvision import datasets, io
    from torchvision.transforms import v2

    change = _changes(pipeline, config.size, v2)
    steps = _finished(pipeline, v2, change, [v2.ToDtype(torch.float32, scale=True)])
    read = partial(io.decode_image, mode=io.ImageReadMode.RGB)
    return _plain_loader(datasets.ImageFolder(folder / "train", steps, loader=read), pipeline, config, device)


def _changes(pipeline: str, size: int, kit: Any) -> list[Any]:
    """What a pipeline does to the bytes of images, of either of torchvision's kits of transforms."""
    from torchvision.transforms import InterpolationMode

    settings = training(pipeline, size)
    if pipeline == "evaluation":
        mode = InterpolationMode(settings.evaluate.interpolation)
        edge = int(size / settings.evaluate.crop)
        return [kit.Resize(edge, interpolation=mode, antialias=True), kit.CenterCrop(size)]
    augment, mode = settings.augment, InterpolationMode.BILINEAR  # the reference's; ours draws one of two
    crop = kit.RandomResizedCrop(size, augment.scale, augment.ratio, interpolation=mode, antialias=True)
    steps = [crop, kit.RandomHorizontalFlip(augment.hflip)]
    return [*steps, kit.RandAugment(magnitude=9, interpolation=mode)] if augment.auto_augment else steps


def _finished(pipeline: str, kit: Any, change: list[Any], finish: list[Any]) -> Callable[[Any], Tensor]:
    settings = training(pipeline, 1)
    steps = [*change, *finish, kit.Normalize(settings.data.mean, settings.data.std)]
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


OURS: Final = "ours"
FEEDS: Final[dict[str, Callable[[str, Path, LoadingConfig, torch.device], Feed]]] = {
    OURS: _ours,
    "timm": _timm,
    "torchvision": _torchvision,
    "torchvision tensors": _torchvision_tensors,
}
"""Whose loaders are measured."""
