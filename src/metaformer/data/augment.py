"""Training transform, as in timm; `Preprocess` is that of evaluation."""

import re
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels, Normalize, Transform
from metaformer.errors import ConfigError


def train_transform(
    image_size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float = 0.4,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    interpolation: str = "random",
    erase: float = 0.25,
    erase_mode: str = "pixel",
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    aug_splits: int = 1,
) -> Transform:
    """Build timm's training pipeline: crop, flips, auto-augmentation or color jitter, normalize, erase.

    The keywords are fields of the configuration's `augment` section. The transform maps an RGB image to
    (3, H, W), or to (aug_splits, 3, H, W): views of one random crop, of which the first is not augmented.

    Raises:
        ConfigError: a value out of range, or an `auto_augment` that timm cannot parse.
    """
    for field, value in (("hflip", hflip), ("vflip", vflip), ("erase", erase)):
        if not 0 <= value <= 1:
            raise ConfigError(f"augment.{field} is {value}: a probability lies between 0 and 1")
    for field, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise ConfigError(f"augment.{field} is ({low}, {high}): it must be (smaller, larger), above 0")
    if aug_splits < 1 or image_size < 1:
        raise ConfigError(
            f"augment.aug_splits is {aug_splits}, data.image_size {image_size}: both must be at least 1"
        )
    for field, choice, known in (
        ("interpolation", interpolation, ("random", "bicubic", "bilinear")),
        ("erase_mode", erase_mode, ("const", "rand", "pixel")),
    ):
        if choice not in known:
            raise ConfigError(f"augment.{field} is {choice!r}: choose one of {', '.join(known)}")
    pipeline = _timm_pipeline(
        auto_augment,
        input_size=image_size,
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        interpolation=interpolation,
        mean=mean,
        std=std,
        re_prob=erase,
        re_mode=erase_mode,
    )
    return _TrainTransform(*pipeline, aug_splits=aug_splits)


def _timm_pipeline(auto_augment: str | None, **options: Any) -> tuple[Any, Any, Any, Any]:
    """Random crop, augmentation, and the final steps of augmented and of clean views."""
    from timm.data.transforms_factory import create_transform

    try:
        crop, augment, finish = create_transform(
            is_training=True, separate=True, auto_augment=auto_augment, **options
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(f"augment.auto_augment {auto_augment!r}: timm cannot parse it ({error})") from error
    for section in (auto_augment or "").split("-")[1:]:
        if not re.search(r"\d", section) and not section.startswith("t"):  # timm ignores it silently
            raise ConfigError(
                f"augment.auto_augment {auto_augment!r}: {section!r} needs a number, as in 'm9'"
            )
    for step in augment.transforms:
        fix_posterize(step)
    normalize = Normalize(options["mean"], options["std"])
    finish.transforms[:2] = [normalize]  # in place of ToTensor and Normalize
    return crop, augment, finish, normalize


def fix_posterize(step: Any) -> None:
    """Let the Posterize operations of a timm auto-augmentation keep 0 bits.

    rand-m9-mstd0.5-inc1 does so when its magnitude reaches 10. Pillow 13 raises an error; in the versions of
    the published runs the image became black.
    """
    from timm.data.auto_augment import posterize

    ops = getattr(step, "ops", None) or [op for policy in getattr(step, "policy", ()) for op in policy]
    for op in ops:
        if op.aug_fn is posterize:
            op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class _TrainTransform:
    def __init__(self, crop: Any, augment: Any, finish: Any, clean: Any, aug_splits: int) -> None:
        self.crop, self.augment, self.finish, self.clean = crop, augment, finish, clean
        self.aug_splits = aug_splits

    def __call__(self, image: Image.Image) -> Tensor:
        cropped = self.crop(image)
        if self.aug_splits == 1:
            return self._augmented(cropped)
        views = [self.clean(cropped)] + [self._augmented(cropped) for _ in range(self.aug_splits - 1)]
        return torch.stack(views)

    def _augmented(self, image: Image.Image) -> Tensor:
        tensor: Tensor = self.finish(self.augment(image))
        return tensor
