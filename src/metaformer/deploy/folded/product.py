"""The 1×1 product of a folded block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.ops import onednn

PLAIN = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


class Product(nn.Module):
    """A linear map of (…, in) to (…, out) that also activates, or adds another map.

    On a CPU the weight is laid out for oneDNN at the first call and kept beside the plain one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self._packed: Tensor | None = None

    def forward(self, tokens: Tensor, act: str = "none", plus: Tensor | None = None) -> Tensor:
        """Map tokens; with `plus` (…, out) there is no activation."""
        if not onednn.usable(tokens):
            y = PLAIN[act](F.linear(tokens, self.weight, self.bias))
            return y if plus is None else y + plus
        if torch.compiler.is_compiling():
            return onednn.compiled_product(tokens, self.weight, self.bias, act, plus)
        if self._packed is None:
            self._packed = onednn.pack(self.weight)
        return onednn.product(tokens, self._packed, self.bias, act, plus)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> "Product":
        self._packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *words: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*words)

    def __getstate__(self) -> dict[str, Any]:
        """A copy lays its weight out anew: oneDNN's layout belongs to this process."""
        return {**self.__dict__, "_packed": None}


def folded(
    weight: Tensor,
    bias: Tensor | None,
    *,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> Product:
    """The product scale · (weight · (gain · x + shift) + bias) as one; computed in float64.

    Args:
        weight: (out, in), or a 1×1 convolution's (out, in, 1, 1).
        bias: (out,).
        gain: (in,), a norm's weight.
        shift: (in,), a norm's bias.
        scale: (out,), a branch's scale.
    """
    dtype = weight.dtype
    w = weight.detach().flatten(1).double()
    b = None if bias is None else bias.detach().double()
    if shift is not None:
        moved = w @ shift.double()
        b = moved if b is None else b + moved
    if gain is not None:
        w = w * gain.double()
    if scale is not None:
        w = w * scale.double()[:, None]
        b = None if b is None else b * scale.double()
    return Product(w.to(dtype), None if b is None else b.to(dtype))
