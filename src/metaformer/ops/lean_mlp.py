"""The channel MLP with its norm and shortcut as a CPU trains it, https://arxiv.org/abs/2111.11418.

Where little memory is asked for only x is kept for the gradient, and the hidden map is made again. Both
passes go over some tokens after the other, so that their part of the hidden map stays in the cache. In
float32 products are the C++ kernels' where these run, elsewhere oneDNN's.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from metaformer.ops import onednn, trained_mlp
from metaformer.ops.token_norm import token_norm, token_norm_gradient

AT_ONCE: Final = 1 << 20
"""Elements of the hidden map that are worked on at once."""
ACTS: Final = ("gelu", "relu", "squared_relu")
_ATEN = torch.ops.aten


@custom_op("metaformer::lean_mlp", mutates_args=(), device_types="cpu")
def lean_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: str,
    eps: float,
    act: str,
    shortcut: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Give w2 · act(w1 · norm(x) + b1) + b2 of (B, C, H, W), channels-last, in the type of the weights.

    The second result is for the backward pass: the hidden map (B · H · W, M) before it is activated, if kept.

    Args:
        x: the map, of two numbers at least; channels-last is fastest.
        w1: weights (M, C).
        b1: (M,), or none.
        w2: weights (C, M).
        b2: (C,), or none.
        gamma: the norm's weight (C,), or none.
        beta: the norm's bias (C,), or none.
        norm: "group_norm" (of one group), "layer_norm" (over channels) or "none".
        eps: the norm's.
        act: a member of `ACTS`.
        shortcut: add x, which then has the type of the weights.
        keep: keep the hidden map, where the kernels of `trained_mlp` run.
    """
    tokens = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
    n = token_norm(tokens, gamma, beta, norm, eps)[0].to(w1.dtype).flatten(0, 2)
    past = tokens.flatten(0, 2) if shortcut else None
    y = _empty_map(x, w1.dtype)
    out = y.permute(0, 2, 3, 1).flatten(0, 2)
    before = n.new_empty(len(n) if keep and trained_mlp.usable(w1) else 0, len(w1))
    if trained_mlp.usable(w1):
        kept = before if keep else None
        trained_mlp.forward(n, w1, b1, w2, b2, act, past, out, kept)
        return y, before
    for part in _parts(n, w1):
        hidden = _product(n[part], w1, b1, "gelu" if act == "gelu" else "relu")
        if act == "squared_relu":
            hidden.square_()
        out[part] = _product(hidden, w2, b2, plus=None if past is None else past[part])
    return y, before


@custom_op("metaformer::lean_mlp_backward", mutates_args=(), device_types="cpu")
def lean_mlp_backward(
    grad: Tensor,
    before: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: str,
    eps: float,
    act: str,
    shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for x, w1, b1, w2, b2, gamma and beta, whether these are there or not."""
    tokens = x.permute(0, 2, 3, 1).contiguous()
    normed, *moments = token_norm(tokens, gamma, beta, norm, eps)
    n, given = normed.to(w1.dtype).flatten(0, 2), grad.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    if trained_mlp.usable(w1):
        of_n, of_w1, of_b1, of_w2 = trained_mlp.backward(
            n, given, w1, b1, w2, act, before if len(before) else None
        )
        of_weights = of_w1, of_b1, of_w2, given.sum(0)
    else:
        of_n, of_weights = _in_parts(n, given, w1, b1, w2, act)
    of_normed = of_n.view(tokens.shape).to(tokens.dtype)
    of_x, of_gamma, of_beta = token_norm_gradient(of_normed, tokens, moments, gamma, beta, norm)
    if shortcut:
        of_x += given.view(of_x.shape)
    return of_x.permute(0, 3, 1, 2), *of_weights, of_gamma, of_beta


def plain(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: str,
    eps: float,
    act: str,
    shortcut: bool,
) -> Tensor:
    """The same in plain PyTorch."""
    n = x
    if norm == "group_norm":
        n = F.group_norm(x, 1, gamma, beta, eps)
    elif norm == "layer_norm":
        n = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], gamma, beta, eps).permute(0, 3, 1, 2)
    hidden = F.conv2d(n.to(w1.dtype), w1[:, :, None, None], b1)
    hidden = F.gelu(hidden) if act == "gelu" else F.relu(hidden)
    hidden = hidden.square() if act == "squared_relu" else hidden
    y = F.conv2d(hidden, w2[:, :, None, None], b2)
    return y + x if shortcut else y


def _in_parts(
    n: Tensor, given: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients for n (N, C), and for w1, b1, w2 and b2, by oneDNN's products."""
    of_n, sums = torch.empty_like(n), _Sums(w1)
    for part in _parts(n, w1):
        hidden, of_hidden = _product(n[part], w1, b1), _product(given[part], w2.t(), None)
        hidden, of_hidden = _activated(hidden, of_hidden, act)
        of_n[part] = _product(of_hidden, w1.t(), None)
        sums.add(n[part], of_hidden, given[part], hidden)
    return of_n, sums.as_weights(given)


class _Sums:
    """Gradients of the weights, summed over the parts in float32 or wider."""

    def __init__(self, w1: Tensor) -> None:
        self.dtype, wide = w1.dtype, torch.promote_types(w1.dtype, torch.float32)
        hidden, dim = w1.shape
        # as the product gives it; turned round at the end
        self.of_w1 = w1.new_zeros((dim, hidden), dtype=wide)
        self.of_b1 = w1.new_zeros(hidden, dtype=wide)
        self.of_w2 = w1.new_zeros((dim, hidden), dtype=wide)

    def add(self, n: Tensor, of_before: Tensor, given: Tensor, hidden: Tensor) -> None:
        # the narrow factor is copied, so that its tokens lie side by side; the wide one is read as it lies
        self.of_w1 += _product(n.t().contiguous(), of_before.t(), None)
        self.of_b1 += of_before.sum(0, dtype=self.of_b1.dtype)
        self.of_w2 += _product(given.t().contiguous(), hidden.t(), None)

    def as_weights(self, given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        of_b2 = given.sum(0, dtype=self.of_b1.dtype)
        every = self.of_w1.t().contiguous(), self.of_b1, self.of_w2, of_b2
        of_w1, of_b1, of_w2, of_b2 = (tensor.to(self.dtype) for tensor in every)
        return of_w1, of_b1, of_w2, of_b2


def _activated(before: Tensor, of_hidden: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """The hidden map, and the gradient before the activation; the second may overwrite what it came from."""
    if act == "gelu":
        hidden = F.gelu(before)
        return hidden, _ATEN.gelu_backward.grad_input(of_hidden, before, grad_input=of_hidden)
    hidden = before.relu_()
    if act == "relu":
        return hidden, of_hidden.mul_(hidden > 0)
    of_hidden.mul_(hidden).mul_(2)
    return hidden.square_(), of_hidden


def _empty_map(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for the result, and no view of something else: FSDP's hooks ask for that."""
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _parts(n: Tensor, w1: Tensor) -> Iterator[slice]:
    """Tokens that are worked on together."""
    step = max(1, AT_ONCE // len(w1))
    return (slice(first, first + step) for first in range(0, len(n), step))


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none", plus: Tensor | None = None
) -> Tensor:
    """`onednn.product`, and the same of PyTorch for types that oneDNN has not."""
    if x.dtype != torch.float64:
        return onednn.product(x, weight, bias, act, plus)
    y = F.linear(x, weight, bias)
    y = y if plus is None else y + plus
    return F.gelu(y) if act == "gelu" else F.relu(y) if act == "relu" else y


@lean_mlp.register_fake
def _(x: Tensor, w1: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, _, height, width = x.shape
    kept = rest[-1] and trained_mlp.usable(w1)
    return _empty_map(x, w1.dtype), w1.new_empty(batch * height * width if kept else 0, len(w1))


@lean_mlp_backward.register_fake
def _(
    grad: Tensor,
    before: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    gamma: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    batch, dim, height, width = x.shape
    of_x = x.new_empty((batch, height, width, dim)).permute(0, 3, 1, 2)
    narrow = w1.new_empty(dim)
    of_gamma = x.new_empty(dim) if gamma is None else torch.empty_like(gamma)
    return of_x, *map(torch.empty_like, (w1, w1[:, 0], w2, narrow, of_gamma, of_gamma))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w1, b1, w2, b2, gamma, beta, *ctx.how, _ = inputs
    ctx.set_materialize_grads(False)  # zeros as large as the hidden map
    ctx.save_for_backward(x, w1, b1, w2, b2, gamma, beta, output[1])


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    x, w1, b1, w2, b2, gamma, beta, before = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable(ctx, grad)
    found = lean_mlp_backward(grad, before, x, w1, b1, w2, gamma, beta, *ctx.how)
    there = (True, True, b1 is not None, True, b2 is not None, gamma is not None, beta is not None)
    return *(of if wanted else None for of, wanted in zip(found, there, strict=True)), *[None] * 5


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same where gradients of gradients are asked for (`create_graph=True`), in plain PyTorch."""
    *inputs, _ = ctx.saved_tensors
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(plain(*inputs, *ctx.how), wanted, grad, create_graph=True))
    each = (None if tensor is None or not tensor.requires_grad else next(found) for tensor in inputs)
    return *each, *[None] * 5


lean_mlp.register_autograd(_gradients, setup_context=_keep)
