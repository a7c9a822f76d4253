"""Classification head for inference: pooling, norms and linear layers as C++ kernels on a CPU."""

from collections.abc import Hashable
from typing import Any, Final

from torch import Tensor, nn

from metaformer.backbones.head import Head, MlpClassifier
from metaformer.deploy.folded.linear import WeightCache, affine_float32
from metaformer.deploy.folded.replay import has_hooks
from metaformer.layers.act import SquaredReLU
from metaformer.layers.norm import GroupNorm, LayerNorm, NoNorm
from metaformer.ops import cpp
from metaformer.ops.global_pool import global_pool
from metaformer.ops.linear import linear, pack
from metaformer.ops.norm import layer_norm

NORMS: Final[dict[type[nn.Module], str]] = {
    GroupNorm: "group_norm",
    LayerNorm: "layer_norm",
    NoNorm: "none",
    nn.LayerNorm: "layer_norm",
    nn.Identity: "none",
}
"""Norm -> its name in `ops`."""
ACTS: Final[dict[type[nn.Module], str]] = {SquaredReLU: "squared_relu", nn.GELU: "gelu", nn.ReLU: "relu"}
"""Activation -> its name in `ops`."""
KNOWN: Final = (*NORMS, *ACTS, MlpClassifier, nn.Linear, nn.Dropout)
"""Parts whose arithmetic is known; a head with another one runs as it is."""


class FoldedHead(WeightCache, Head):
    """A `Head` in evaluation: its layers and their names, computed by kernels where they can."""

    def __init__(self, head: Head) -> None:
        self.adopt(head)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, H, W) to logits (B, K), or without pooling (B, K, H, W).

        `pre_logits` stops before the classifier.
        """
        tokens = x.permute(0, 2, 3, 1)
        if not self._supports(tokens):
            return Head.forward(self, x, pre_logits)
        self.state()
        if self.norm_first:
            x = global_pool(tokens, norm=NORMS[type(self.norm)], **self._options(self.norm))
        else:
            x = self._normalize(self.norm, global_pool(tokens))
        return x if pre_logits else self._classify(x)

    def state(self) -> Hashable:
        """What its results depend on beside the input; packed weights are dropped when it has changed.

        Parts and parameters by identity, and how often these were changed in place.
        """
        parts, values = list(self.modules()), list(self.parameters())
        versions = tuple(0 if value.is_inference() else value._version for value in values)
        frozen, modes = (value.requires_grad for value in values), (part.training for part in parts)
        state = (self.global_pool, *map(id, parts), *map(id, values), versions, *frozen, *modes)
        if self._cache.get("state", (None,))[0] != state:
            self._clear()
            self._cache["state"] = state, parts, values  # while they live no other has their identity
        return state

    def _supports(self, tokens: Tensor) -> bool:
        """Whether the kernels compute the head of tokens (B, H, W, C)."""
        parts = list(self.modules())[1:]
        return (
            self.global_pool == "avg"
            and not self.training
            and type(self.norm) in NORMS
            and cpp.supports(tokens)
            and cpp.has_linear(tokens.dtype)
            and all(type(part) in KNOWN and not has_hooks(part) for part in parts)
            and all(getattr(part, "approximate", "none") == "none" for part in parts)  # of GELU
            and not has_hooks(self)
            and not any(value.requires_grad for value in self.parameters())
            and not any(layer.in_features % cpp.lanes() for layer in parts if isinstance(layer, nn.Linear))
        )

    def _options(self, norm: Any) -> dict[str, Any]:
        """A norm's constants as keywords, in float32."""
        if NORMS[type(norm)] == "none":
            return {}
        weight, bias = self.get(norm, lambda: affine_float32(norm))
        return {"weight": weight, "bias": bias, "eps": norm.eps}

    def _normalize(self, norm: nn.Module, x: Tensor) -> Tensor:
        """A layer norm, or none, of pooled vectors."""
        return x if NORMS[type(norm)] == "none" else layer_norm(x, **self._options(norm))

    def _classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) of pooled vectors (B, C)."""
        fc = self.fc
        if isinstance(fc, MlpClassifier):
            hidden = self._linear(fc.fc1, x, ACTS[type(fc.act)])
            return self._linear(fc.fc2, self._normalize(fc.norm, hidden))
        return self._linear(fc, x) if isinstance(fc, nn.Linear) else x

    def _linear(self, layer: nn.Linear, x: Tensor, act: str = "none") -> Tensor:
        return linear(x, self.get(layer, lambda: pack(layer.weight, layer.bias)), act=act)
