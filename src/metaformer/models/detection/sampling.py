"""Which of very many matched boxes the losses look at."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """Choose positives and negatives at random."""

    size: int
    """Boxes per image, at most."""
    share: float
    """Positives among them, at most; negatives fill what is left."""

    def __call__(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Map matches (N,), as `Matcher` gives them, to sorted indices of positives and of negatives."""
        positives = _some(matches >= 0, int(self.size * self.share))
        return positives, _some(matches == -1, self.size - len(positives))


def _some(wanted: Tensor, most: int) -> Tensor:
    found = wanted.nonzero()[:, 0]
    if len(found) <= most:
        return found
    chosen = torch.randperm(len(found), device=found.device)[:most]
    return found[chosen.sort().values]
