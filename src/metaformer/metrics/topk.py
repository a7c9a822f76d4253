"""Top-k accuracy."""

import torch
from torch import Tensor

from metaformer.ops.ranks import total


class TopK:
    """Share of the images whose class is among the k highest scores."""

    def __init__(self, ks: tuple[int, ...] = (1, 5)) -> None:
        self.ks = ks
        self._hits = torch.zeros(len(ks), dtype=torch.int64)
        self._images = torch.zeros((), dtype=torch.int64)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch: scores (B, K), labels (B,); k beyond K counts as K."""
        ranked = scores.topk(min(max(self.ks), scores.shape[1]), dim=1).indices
        hit = ranked == labels[:, None]  # (B, max k)
        self._hits += torch.stack([hit[:, :k].any(dim=1).sum() for k in self.ks]).to(self._hits)
        self._images += len(labels)

    def result(self) -> dict[int, float]:
        """Accuracy by k, over all ranks; 0 of no images."""
        hits, images = total(self._hits), int(total(self._images))
        return {k: int(hit) / max(images, 1) for k, hit in zip(self.ks, hits, strict=True)}
