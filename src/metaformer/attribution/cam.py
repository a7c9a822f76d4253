"""Class activation maps of any layer, by captum: Grad-CAM and HiResCAM."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metaformer.errors import MissingPackage

Score = Callable[[Tensor], Tensor]
"""A score of each image, (B,), with a gradient, of a network's input (B, C, H, W)."""


def grad_cam(score: Score, layer: nn.Module, x: Tensor, per_position: bool = False) -> Tensor:
    """Where the features of a layer raise a score: (B, h, w), float32, 0 where they do not.

    Each channel of the layer's output weighs as much as its mean gradient (https://arxiv.org/abs/1610.02391),
    or at each position as much as its gradient there (HiResCAM, https://arxiv.org/abs/2011.08891); negative
    sums are cut off.

    Args:
        score: what is explained.
        layer: a module behind which `score` goes on, with an output (B, C, h, w).
        x: the network's input.
        per_position: weigh each position by its own gradient: for a score of one place, such as a box, whose
            gradient is 0 elsewhere, and whose mean would light up places that have no part in it.

    Raises:
        MissingPackage: captum is not there.
    """
    try:
        from captum.attr import LayerGradCam, LayerGradientXActivation
    except ImportError as error:
        raise MissingPackage("captum", "explain", "explaining by class activation maps") from error
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()  # a frozen stem has a gradient, too, and so has what inference made
        if per_position:
            cam: Tensor = LayerGradientXActivation(score, layer).attribute(x).sum(1).relu()
        else:
            cam = LayerGradCam(score, layer).attribute(x, relu_attributions=True)[:, 0]
    return cam.detach().float()
