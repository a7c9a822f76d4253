"""The 1×1 product of a folded block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.norm import BareLayerNorm
from metaformer.deploy.folded.prepared import Prepared
from metaformer.ops import onednn, packed
from metaformer.ops.packed import Packed
from metaformer.ops.product import product

PLAIN = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


class Product(Prepared):
    """A linear map of (…, in) to (…, out) that also activates, or adds another map.

    On a CPU the weight is laid out at the first call and kept beside the plain one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(
        self, tokens: Tensor, act: str = "none", plus: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Map tokens, then activate, or add `plus` (…, out), times `keep` (out,) in float32 where given."""
        if packed.usable(self.weight, tokens, *(() if plus is None else (plus,))):
            return product(tokens, self.packed, act=act, past=plus, keep=keep)
        if plus is not None and keep is not None:
            plus = plus * keep.to(plus.dtype)
        if onednn.usable(tokens):
            weight = self.kept("weight", lambda: onednn.pack(self.weight))
            return onednn.product(tokens, weight, self.bias, act, plus)
        if self._compiled_for_cpu(tokens):
            return self._convolution(tokens, act, plus)
        y = PLAIN[act](F.linear(tokens, self.weight, self.bias))
        return y if plus is None else y + plus

    def after(self, norm: nn.Module, tokens: Tensor, act: str = "none") -> Tensor:
        """Map what a norm of `take_apart` makes of tokens."""
        if isinstance(norm, BareLayerNorm) and packed.usable(self.weight, tokens):
            return product(tokens, self.packed, norm="layer_norm", eps=norm.eps, act=act)
        return self(norm(tokens), act)

    @property
    def packed(self) -> Packed:
        """Weight and bias as the C++ kernels read them."""
        return self.kept("packed", lambda: packed.pack(self.weight, self.bias))

    def _compiled_for_cpu(self, tokens: Tensor) -> bool:
        return torch.compiler.is_dynamo_compiling() and tokens.device.type == "cpu" and tokens.ndim == 4

    def _convolution(self, tokens: Tensor, act: str, plus: Tensor | None) -> Tensor:
        """The same as Inductor hands it to oneDNN, epilogue and all; a product would go to MKL."""
        y = PLAIN[act](F.conv2d(tokens.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias))
        y = y if plus is None else y + plus.permute(0, 3, 1, 2)
        return y.permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


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
