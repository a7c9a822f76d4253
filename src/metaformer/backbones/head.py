"""Classification head."""

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.layers.act import SquaredReLU
from metaformer.layers.init import init_part
from metaformer.layers.norm import NORMS


class MlpClassifier(nn.Module):
    """Classifier of two layers, 4 · dim between them, https://arxiv.org/abs/2210.13452."""

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = SquaredReLU()
        self.norm = nn.LayerNorm(4 * dim)  # eps 1e-5, unlike the network's other norms
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, num_classes)."""
        return self.fc2(self.drop(self.norm(self.act(self.fc1(x)))))


class Head(nn.Module):
    """Final norm, average pooling and classifier, in the order that the family defines."""

    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__()
        dim = config.dims[-1]
        eps = config.norm_eps if config.head_norm_eps is None else config.head_norm_eps
        self.norm_first = config.head == "norm_pool_fc"
        self.norm: nn.Module
        if self.norm_first:
            self.norm = NORMS.build(config.norm, dim, eps=eps)
        else:
            self.norm = nn.LayerNorm(dim, eps)
        self.mlp = config.head == "pool_norm_mlp"
        self.dropout = config.head_dropout
        self.reset(dim, config.num_classes, config.global_pool)

    def reset(self, dim: int, num_classes: int, global_pool: str) -> None:
        """Replace the classifier by a new one."""
        self.global_pool = global_pool
        self.drop = nn.Dropout(0.0 if self.mlp else self.dropout)
        self.fc = init_part("head.fc", self._classifier, dim, num_classes)

    def _classifier(self, dim: int, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        fc = MlpClassifier(dim, num_classes, self.dropout) if self.mlp else nn.Linear(dim, num_classes)
        for module in fc.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        return fc

    def pool(self, x: Tensor) -> Tensor:
        """Reduce (B, C, H, W) to (B, C), or with no pooling to (B, H, W, C)."""
        if self.global_pool == "":
            return x.permute(0, 2, 3, 1)
        if self.global_pool == "max":
            return F.adaptive_max_pool2d(x, 1).flatten(1)
        return x.mean((2, 3))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, H, W) to logits (B, K), or without pooling (B, K, H, W).

        `pre_logits` stops before the classifier.
        """
        x = self.pool(self.norm(x)) if self.norm_first else self.norm(self.pool(x))
        if not pre_logits:
            x = self.fc(self.drop(x))
        return x.permute(0, 3, 1, 2) if self.global_pool == "" else x
