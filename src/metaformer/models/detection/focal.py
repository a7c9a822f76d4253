"""The focal loss, https://arxiv.org/abs/1708.02002."""

import torch.nn.functional as F
from torch import Tensor

ALPHA = 0.25
"""Weight of what is an object; the rest is that of what is none."""


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over logits (…, K) of whether a place is an object of each class, in float32.

    torchvision's function computes the same from zeros and ones for every logit, in thrice the memory.

    Args:
        logits: of independent probabilities.
        labels: the class of each place (…), −1 for none, −2 for one that does not count.
    """
    logits = logits.float()
    places = (labels >= 0).nonzero(as_tuple=True)
    chosen = logits[(*places, labels[places])]
    absent = (_absent(logits).sum(-1) * (labels != -2)).sum()
    return absent + ALPHA * _absent(-chosen).sum() / (1 - ALPHA) - _absent(chosen).sum()


def _absent(logits: Tensor) -> Tensor:
    """What it costs that something is thought likely and is not there, with gamma 2."""
    return (1 - ALPHA) * logits.sigmoid().square() * F.softplus(logits)
