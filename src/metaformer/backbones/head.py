"""Classification head."""

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.layers.act import ACTS
from metaformer.layers.init import init_normal, init_part
from metaformer.layers.norm import NORMS


class MlpClassifier(nn.Module):
    """Classifier of two layers with activation and norm between them, https://arxiv.org/abs/2210.13452."""

    def __init__(self, dim: int, num_classes: int, config: MetaFormerConfig) -> None:
        super().__init__()
        hidden, eps = max(1, int(dim * config.head_mlp_ratio)), config.head_mlp_norm_eps
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTS.build(config.head_mlp_act)
        self.norm = nn.Identity() if eps is None else nn.LayerNorm(hidden, eps)
        self.drop = nn.Dropout(config.head_dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, num_classes)."""
        return self.fc2(self.drop(self.norm(self.act(self.fc1(x)))))


class Head(nn.Module):
    """Final norm, average pooling and classifier, in the order that the family defines."""

    def __init__(self, config: MetaFormerConfig) -> None:
        super().__init__()
        dim = config.dims[-1]
        eps = config.norm_eps if config.head_norm_eps is None else config.head_norm_eps
        self.config = config
        self.norm_first = config.head == "norm_pool_fc"
        self.norm: nn.Module = nn.Identity()
        if self.norm_first:
            self.norm = NORMS.build(config.norm, dim, eps=eps)
        elif config.head != "pool_mlp":
            self.norm = nn.LayerNorm(dim, eps)
        self.reset(dim, config.num_classes, config.global_pool)

    def reset(self, dim: int, num_classes: int, global_pool: str) -> None:
        """Replace the classifier by a new one."""
        self.global_pool = global_pool
        self.drop = nn.Dropout(0.0 if self.config.mlp_head else self.config.head_dropout)
        self.fc = init_part("head.fc", self._classifier, dim, num_classes)

    def _classifier(self, dim: int, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        mlp = self.config.mlp_head
        fc = MlpClassifier(dim, num_classes, self.config) if mlp else nn.Linear(dim, num_classes)
        for module in fc.modules():
            if isinstance(module, nn.Linear):
                init_normal(module)
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
