"""Test-time augmentation: the mean over several looks at an image."""

from torch import Tensor

from metaformer.tasks.base import Forward


def average_views(forward: Forward, images: Tensor, flip: bool = False) -> Tensor:
    """Mean logits (B, K) of images (B, 3, H, W), or (B, crops, 3, H, W), and with `flip` of their mirrors."""
    views = images.flatten(0, 1) if images.ndim == 5 else images
    logits = forward(views)
    if flip:
        logits = (logits + forward(views.flip(-1))) / 2
    return logits.unflatten(0, images.shape[:2]).mean(dim=1) if images.ndim == 5 else logits
