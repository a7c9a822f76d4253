"""Channel MLP with its norm and residual as CPUs train it: one operation with a backward pass of its own.

Both passes take some tokens after the other, so that their hidden activations stay in the cache. Saved for
the backward pass are x and, on request and in C++, the hidden activations before `act`, which else are
recomputed. Linear layers run in C++ where `cpp.supports_weight`, with a group norm of x in their dtype, whose
result is then not written; elsewhere in oneDNN.
https://arxiv.org/abs/2111.11418
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from metaformer.ops import cpp, onednn
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import ACTS as NUMBERS
from metaformer.ops.linear import NORMS as NORM_NUMBERS
from metaformer.ops.linear import PackedWeight, to_float32
from metaformer.ops.mlp import reference as mlp_reference
from metaformer.ops.norm import SampleNorm, norm_backward, norm_forward, sample_moments, sample_norm_backward
from metaformer.ops.norm import norm as normalized

CHUNK: Final = 1 << 20
"""Elements of the hidden activations that oneDNN works on at once."""
ACTS: Final = ("gelu", "relu", "squared_relu")
_ATEN = torch.ops.aten


@custom_op("metaformer::train_mlp", mutates_args=(), device_types="cpu")
def train_mlp(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, norm: str, eps: float, act: str, residual: bool, save_pre_act: bool,
    moments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Channel MLP: act(norm(x) · w1ᵀ + b1) · w2ᵀ + b2, plus x with `residual`, in the dtype of the weights.

    The second result is for the backward pass: the hidden activations before `act`, (B · H · W, M), if saved.

    Args:
        x: the activations (B, C, H, W), two numbers at least; channels-last is fastest.
        w1: (M, C).
        b1: (M,), or none.
        w2: (C, M).
        b2: (C,), or none.
        gamma: the norm's weight (C,), or none.
        beta: the norm's bias (C,), or none.
        norm: "group_norm" (of one group), "layer_norm" (over channels) or "none".
        eps: the norm's.
        act: a member of `ACTS`.
        residual: add x, which then has the dtype of the weights.
        save_pre_act: save the hidden activations, where the C++ kernels run.
        moments: of x for a group norm, where they are known: mean and 1/σ of each sample, (B, 2).
    """
    tokens = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
    shortcut = tokens.flatten(0, 2) if residual else None
    y = _empty_output(x, w1.dtype)
    out = y.permute(0, 2, 3, 1).flatten(0, 2)  # a view of y, (N, C)
    pre_act = w1.new_empty(len(out) if save_pre_act and supports_cpp(w1) else 0, len(w1))
    inner = _sample_norm(tokens, w1, gamma, beta, moments, norm, eps)
    n = tokens if inner else norm_forward(tokens, norm, gamma, beta, eps)[0].to(w1.dtype)
    n = n.flatten(0, 2)
    if supports_cpp(w1):
        cpp_forward(n, w1, b1, w2, b2, act, shortcut, out, pre_act if save_pre_act else None, inner)
        return y, pre_act
    for rows in _chunks(n, w1):
        hidden = _linear(n[rows], w1, b1, "gelu" if act == "gelu" else "relu")
        if act == "squared_relu":
            hidden.square_()
        out[rows] = _linear(hidden, w2, b2, residual=None if shortcut is None else shortcut[rows])
    return y, pre_act


@custom_op("metaformer::train_mlp_backward", mutates_args=(), device_types="cpu")
def train_mlp_backward(
    grad_out: Tensor, pre_act: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor,
    gamma: Tensor | None, beta: Tensor | None, norm: str, eps: float, act: str, residual: bool,
    moments: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for x, w1, b1, w2, b2, gamma and beta, whether these are there or not."""
    tokens = x.permute(0, 2, 3, 1).contiguous()
    grad_out = grad_out.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    inner = _sample_norm(tokens, w1, gamma, beta, moments, norm, eps)
    n, *known = (tokens,) if inner else norm_forward(tokens, norm, gamma, beta, eps)
    n = n.to(w1.dtype).flatten(0, 2)
    if supports_cpp(w1):
        saved = pre_act if len(pre_act) else None
        grad_n, *grads = cpp_backward(n, grad_out, w1, b1, w2, act, saved, inner)
        grad_w1, grad_b1, grad_w2, grad_b2 = (grad.to(w1.dtype) for grad in grads)
        grad_weights = grad_w1, grad_b1, grad_w2, grad_b2
    else:
        grad_n, grad_weights = _backward_in_chunks(n, grad_out, w1, b1, w2, act)
    if inner:
        grad_x, *affine = sample_norm_backward(grad_n, tokens, inner, grad_out if residual else None)
        grad_gamma, grad_beta = (grad.to(x.dtype if gamma is None else gamma.dtype) for grad in affine)
    else:
        grad_normed = grad_n.view(tokens.shape).to(tokens.dtype)
        grad_x, grad_gamma, grad_beta = norm_backward(grad_normed, tokens, known, norm, gamma, beta)
        if residual:
            grad_x += grad_out.view(grad_x.shape)
    return grad_x.permute(0, 3, 1, 2), *grad_weights, grad_gamma, grad_beta


def supports_cpp(w1: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether both passes run in C++ with a first weight (M, C), of its own dtype or converted to `dtype`."""
    return w1.device.type == "cpu" and cpp.supports_weight(w1, dtype)


def cpp_forward(
    n: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: str,
    residual: Tensor | None, out: Tensor, pre_act: Tensor | None, norm: SampleNorm | None = None,
) -> None:  # fmt: skip
    """Write act(n · w1ᵀ + b1) · w2ᵀ + b2 + residual of n (N, C) to `out` (N, C), both contiguous.

    n · w1ᵀ + b1 is written to `pre_act` (N, M), if that is there. With a norm, n is first normalized by it.
    """
    first, second = _pack(w1, b1), _pack(w2, b2)
    kernels.mlp(
        x=n, **_norm_options(n, norm), w1=first.weight, b1=first.bias, w2=second.weight, b2=second.bias,
        residual=residual, residual_scale=None, out=out, pre_act=pre_act, dim=w1.shape[1],
        hidden=w1.shape[0], act=NUMBERS[act], eps=0.0,
    )  # fmt: skip


def cpp_backward(
    n: Tensor, grad_out: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str,
    pre_act: Tensor | None = None, norm: SampleNorm | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in float32 for n (N, C), w1 (M, C), b1 (M,), w2 (C, M), b2 (C,).

    That for n is the one behind its norm, if it has one. `pre_act` is recomputed if it was not saved.
    """
    w1, w2 = w1.contiguous(), w2.contiguous()
    grad_n, grad_w1, grad_b1, grad_w2, grad_b2 = (
        torch.empty_like(like, dtype=torch.float32) for like in (n, w1, w1[:, 0], w2, w2[:, 0])
    )
    kernels.mlp_backward(
        x=n, grad_out=grad_out, **_norm_options(n, norm), w1=w1, b1=None if b1 is None else to_float32(b1),
        w2=w2, pre_act=pre_act, grad_x=grad_n, grad_w1=grad_w1, grad_b1=grad_b1, grad_w2=grad_w2,
        grad_b2=grad_b2, dim=w1.shape[1], hidden=w1.shape[0], act=NUMBERS[act],
    )  # fmt: skip
    return grad_n, grad_w1, grad_b1, grad_w2, grad_b2


def reference(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, norm: str, eps: float, act: str, residual: bool,
) -> Tensor:  # fmt: skip
    """The first result in plain PyTorch: the formula of `ops.mlp`."""
    tokens = x.permute(0, 2, 3, 1)
    n = normalized(tokens, norm, gamma, beta, eps).to(w1.dtype)
    y = mlp_reference(n, w1, b1, w2, b2, act=act, residual=tokens if residual else None)
    return y.permute(0, 3, 1, 2)


def _sample_norm(
    tokens: Tensor, w1: Tensor, gamma: Tensor | None, beta: Tensor | None, moments: Tensor | None, norm: str,
    eps: float,
) -> SampleNorm | None:  # fmt: skip
    """The norm, where the C++ kernels compute it as they read x."""
    if norm != "group_norm" or tokens.dtype != w1.dtype or not supports_cpp(w1):
        return None
    constants = (None if vector is None else to_float32(vector) for vector in (gamma, beta))
    return SampleNorm(sample_moments(tokens, eps) if moments is None else moments, *constants)


def _norm_options(n: Tensor, norm: SampleNorm | None) -> dict[str, Any]:
    """What the kernels take of a norm, and the sizes of n (N, C)."""
    if norm is None:
        nothing = {"moments": None, "gamma": None, "beta": None}
        return {**nothing, "samples": 1, "positions": len(n), "norm": NORM_NUMBERS["none"]}
    samples = len(norm.moments)
    sizes = {"samples": samples, "positions": len(n) // samples, "norm": NORM_NUMBERS["group_norm"]}
    return {**norm._asdict(), **sizes}


def _pack(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    out_features, in_features = weight.shape
    packed = weight.new_empty(out_features * in_features)
    kernels.pack_linear(
        weight=weight.contiguous(), packed=packed, out_features=out_features, in_features=in_features
    )
    bias = weight.new_zeros(out_features, dtype=torch.float32) if bias is None else to_float32(bias)
    return PackedWeight(packed, bias, out_features, in_features)


def _backward_in_chunks(
    n: Tensor, grad_out: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients for n (N, C), and for w1, b1, w2 and b2, by oneDNN."""
    grad_n, sums = torch.empty_like(n), _WeightGradients(w1)
    for rows in _chunks(n, w1):
        hidden, grad_hidden = _linear(n[rows], w1, b1), _linear(grad_out[rows], w2.t(), None)
        hidden, grad_hidden = _activate_backward(hidden, grad_hidden, act)
        grad_n[rows] = _linear(grad_hidden, w1.t(), None)
        sums.add(n[rows], grad_hidden, grad_out[rows], hidden)
    return grad_n, sums.results(grad_out)


class _WeightGradients:
    """Gradients of the weights, summed over chunks of tokens in float32 or wider."""

    def __init__(self, w1: Tensor) -> None:
        self.dtype, wide = w1.dtype, torch.promote_types(w1.dtype, torch.float32)
        hidden, dim = w1.shape
        self.grad_w1 = w1.new_zeros((dim, hidden), dtype=wide)  # transposed, as the product gives it
        self.grad_b1 = w1.new_zeros(hidden, dtype=wide)
        self.grad_w2 = w1.new_zeros((dim, hidden), dtype=wide)

    def add(self, n: Tensor, grad_pre_act: Tensor, grad_out: Tensor, hidden: Tensor) -> None:
        # the narrow factor is copied, so that its tokens lie side by side; the wide one is read as it lies
        self.grad_w1 += _linear(n.t().contiguous(), grad_pre_act.t(), None)
        self.grad_b1 += grad_pre_act.sum(0, dtype=self.grad_b1.dtype)
        self.grad_w2 += _linear(grad_out.t().contiguous(), hidden.t(), None)

    def results(self, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grad_b2 = grad_out.sum(0, dtype=self.grad_b1.dtype)
        sums = self.grad_w1.t().contiguous(), self.grad_b1, self.grad_w2, grad_b2
        grad_w1, grad_b1, grad_w2, grad_b2 = (tensor.to(self.dtype) for tensor in sums)
        return grad_w1, grad_b1, grad_w2, grad_b2


def _activate_backward(pre_act: Tensor, grad_hidden: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """The hidden activations, and the gradient before `act`; either may overwrite its argument."""
    if act == "gelu":
        hidden = F.gelu(pre_act)
        return hidden, _ATEN.gelu_backward.grad_input(grad_hidden, pre_act, grad_input=grad_hidden)
    hidden = pre_act.relu_()
    if act == "relu":
        return hidden, grad_hidden.mul_(hidden > 0)
    grad_hidden.mul_(hidden).mul_(2)
    return hidden.square_(), grad_hidden


def _empty_output(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for the result, and no view of something else: FSDP's hooks ask for that."""
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _chunks(n: Tensor, w1: Tensor) -> Iterator[slice]:
    """Tokens that are worked on together."""
    step = max(1, CHUNK // len(w1))
    return (slice(first, first + step) for first in range(0, len(n), step))


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none", residual: Tensor | None = None
) -> Tensor:
    """`onednn.linear`, and the same of PyTorch for dtypes that oneDNN has not."""
    if x.dtype != torch.float64:
        return onednn.linear(x, weight, bias, act, residual)
    y = F.linear(x, weight, bias)
    y = y if residual is None else y + residual
    return F.gelu(y) if act == "gelu" else F.relu(y) if act == "relu" else y


@train_mlp.register_fake
def _(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, norm: str, eps: float, act: str, residual: bool, save_pre_act: bool, *rest: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, _, height, width = x.shape
    saved = save_pre_act and supports_cpp(w1)
    return _empty_output(x, w1.dtype), w1.new_empty(batch * height * width if saved else 0, len(w1))


@train_mlp_backward.register_fake
def _(
    grad_out: Tensor, pre_act: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor,
    gamma: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, dim, height, width = x.shape
    grad_x = x.new_empty((batch, height, width, dim)).permute(0, 3, 1, 2)
    grad_b2 = w1.new_empty(dim)
    grad_gamma = x.new_empty(dim) if gamma is None else torch.empty_like(gamma)
    return grad_x, *map(torch.empty_like, (w1, w1[:, 0], w2, grad_b2, grad_gamma, grad_gamma))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w1, b1, w2, b2, gamma, beta, *ctx.options, _, moments = inputs
    ctx.set_materialize_grads(False)  # zeros as large as the hidden activations
    ctx.save_for_backward(x, w1, b1, w2, b2, gamma, beta, moments, output[1])


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 13
    x, w1, b1, w2, b2, gamma, beta, moments, pre_act = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable_backward(ctx, grad_out)
    grads = train_mlp_backward(grad_out, pre_act, x, w1, b1, w2, gamma, beta, *ctx.options, moments)
    present = (True, True, b1 is not None, True, b2 is not None, gamma is not None, beta is not None)
    return *(grad if there else None for grad, there in zip(grads, present, strict=True)), *[None] * 6


def _differentiable_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """The same where gradients of gradients are asked for (`create_graph=True`), in plain PyTorch."""
    *inputs, _, _ = ctx.saved_tensors
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    grads = iter(torch.autograd.grad(reference(*inputs, *ctx.options), wanted, grad_out, create_graph=True))
    each = (None if tensor is None or not tensor.requires_grad else next(grads) for tensor in inputs)
    return *each, *[None] * 6


train_mlp.register_autograd(_backward, setup_context=_setup_context)
