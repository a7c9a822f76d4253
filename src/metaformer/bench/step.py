"""A training step without an optimizer: what is timed and whose memory is measured."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TrainingStep(nn.Module):
    """Forward and backward pass of a model that gives logits, of images or of pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> None:
        """Leave gradients behind."""
        self.model.zero_grad(set_to_none=True)
        logits = self.model(images)
        labels = torch.zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.long, device=logits.device)
        F.cross_entropy(logits.float(), labels).backward()
