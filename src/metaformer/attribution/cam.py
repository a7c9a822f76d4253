"""Class activation maps of any layer (Grad-CAM, https://arxiv.org/abs/1610.02391), by captum."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metaformer.errors import MissingPackage

Score = Callable[[Tensor], Tensor]
"""A score of each image, (B,), with a gradient, of a network's input (B, C, H, W)."""


def grad_cam(score: Score, layer: nn.Module, x: Tensor) -> Tensor:
    """Where the features of a layer raise a score: (B, h, w), float32, 0 where they do not.

    Each channel of the layer's output weighs as much as its mean gradient; negative sums are cut off.

    Args:
        score: what is explained.
        layer: a module behind which `score` goes on, with an output (B, C, h, w).
        x: the network's input.

    Raises:
        MissingPackage: captum is not there.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise MissingPackage("captum", "explain", "explaining by class activation maps") from error
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()  # a frozen stem has a gradient, too, and so has what inference made
        cam: Tensor = LayerGradCam(score, layer).attribute(x, relu_attributions=True)
    return cam.detach()[:, 0].float()
