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
    moments: Tensor | None = None, scale: Tensor | None = None, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Channel MLP: scale · (act(norm(x) · w1ᵀ + b1) · w2ᵀ + b2), plus x with `residual`, in `dtype`.

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
        residual: add x, which then has the result's dtype.
        save_pre_act: save the hidden activations, where the C++ kernels run.
        moments: of x for a group norm, where they are known: mean and 1/σ of each sample, (B, 2).
        scale: LayerScale (C,), or none.
        dtype: what the weights are rounded to and the result has; the weights' own by default.
    """
    dtype = dtype or w1.dtype
    by_cpp = supports_cpp(w1, dtype)
    tokens = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
    shortcut = tokens.flatten(0, 2) if residual else None
    y = _empty_output(x, dtype)
    out = y.permute(0, 2, 3, 1).flatten(0, 2)  # a view of y, (N, C)
    pre_act = y.new_empty(len(out) if save_pre_act and by_cpp else 0, len(w1))
    inner = _sample_norm(tokens, gamma, beta, moments, norm, eps) if by_cpp and x.dtype == dtype else None
    n = (tokens if inner else norm_forward(tokens, norm, gamma, beta, eps)[0].to(dtype)).flatten(0, 2)
    if by_cpp:
        cpp_forward(n, w1, b1, w2, b2, act, shortcut, out, pre_act if save_pre_act else None, inner, scale)
        return y, pre_act
    w1, b1, w2, b2 = _folded(w1, b1, w2, b2, scale, dtype)
    for rows in _chunks(n, w1):
        hidden = _linear(n[rows], w1, b1, "gelu" if act == "gelu" else "relu")
        if act == "squared_relu":
            hidden.square_()
        out[rows] = _linear(hidden, w2, b2, residual=None if shortcut is None else shortcut[rows])
    return y, pre_act


@custom_op("metaformer::train_mlp_backward", mutates_args=(), device_types="cpu")
def train_mlp_backward(
    grad_out: Tensor, pre_act: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor,
    b2: Tensor | None, gamma: Tensor | None, beta: Tensor | None, norm: str, eps: float, act: str,
    residual: bool, moments: Tensor | None = None, scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for x, w1, b1, w2, b2, gamma, beta and scale, whether these are there or not."""
    dtype = grad_out.dtype
    by_cpp = supports_cpp(w1, dtype)
    tokens = x.permute(0, 2, 3, 1).contiguous()
    grad_out = grad_out.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    inner = _sample_norm(tokens, gamma, beta, moments, norm, eps) if by_cpp and x.dtype == dtype else None
    n, *known = (tokens,) if inner else norm_forward(tokens, norm, gamma, beta, eps)
    n = n.to(dtype).flatten(0, 2)
    if by_cpp:
        saved = pre_act if len(pre_act) else None
        grad_n, *grads = cpp_backward(n, grad_out, w1, b1, w2, act, saved, inner, scale)
    else:
        first, bias, second, _ = _folded(w1, b1, w2, None, scale, dtype)
        grad_n, *grads = _backward_in_chunks(n, grad_out, first, bias, second, act)
        if scale is not None:
            grads.append((grads[2] * w2).sum(1))
            grads[2] = grads[2] * scale[:, None]
    if scale is None:
        grads.append(w1.new_empty(0))
    else:
        *_, grad_b2, grad_scale = grads
        grads[-2:] = grad_b2 * scale, grad_scale if b2 is None else grad_scale + grad_b2 * b2
    if inner:
        grad_x, *affine = sample_norm_backward(grad_n, tokens, inner, grad_out if residual else None)
        grad_gamma, grad_beta = (grad.to(x.dtype if gamma is None else gamma.dtype) for grad in affine)
    else:
        grad_normed = grad_n.view(tokens.shape).to(tokens.dtype)
        grad_x, grad_gamma, grad_beta = norm_backward(grad_normed, tokens, known, norm, gamma, beta)
        if residual:
            grad_x += grad_out.view(grad_x.shape)
    grad_w1, grad_b1, grad_w2, grad_b2, grad_scale = (grad.to(w1.dtype) for grad in grads)
    grad_x = grad_x.permute(0, 3, 1, 2)
    return grad_x, grad_w1, grad_b1, grad_w2, grad_b2, grad_gamma, grad_beta, grad_scale


def supports_cpp(w1: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether both passes run in C++ with a first weight (M, C), of its own dtype or converted to `dtype`."""
    return w1.device.type == "cpu" and cpp.supports_weight(w1, dtype)


def cpp_forward(
    n: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: str,
    residual: Tensor | None, out: Tensor, pre_act: Tensor | None, norm: SampleNorm | None = None,
    scale: Tensor | None = None,
) -> None:  # fmt: skip
    """Write scale · (act(n · w1ᵀ + b1) · w2ᵀ + b2) + residual of n (N, C) to `out` (N, C), both contiguous.

    n · w1ᵀ + b1 is written to `pre_act` (N, M), if that is there. With a norm, n is first normalized by it.
    """
    first, second = _pack(w1, b1, None, n.dtype), _pack(w2, b2, scale, n.dtype)
    kernels.mlp(
        x=n, **_norm_options(n, norm), w1=first.weight, b1=first.bias, w2=second.weight, b2=second.bias,
        residual=residual, residual_scale=None, out=out, pre_act=pre_act, dim=w1.shape[1],
        hidden=w1.shape[0], act=NUMBERS[act], eps=0.0,
    )  # fmt: skip


def cpp_backward(
    n: Tensor, grad_out: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str,
    pre_act: Tensor | None = None, norm: SampleNorm | None = None, scale: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients in float32 of act(n · w1ᵀ + b1) · (scale · w2)ᵀ + b2 for n, w1, b1, w2, b2 and scale, if any.

    With a norm, n is first normalized by it, and its gradient is the one behind it. `pre_act` is recomputed
    if it was not saved.
    """
    w1, w2 = to_float32(w1), to_float32(w2)
    b1, scale = (None if vector is None else to_float32(vector) for vector in (b1, scale))
    likes = (n, w1, w1[:, 0], w2, *[w2[:, 0]] * (1 if scale is None else 2))
    grad_n, grad_w1, grad_b1, grad_w2, *grads = (
        torch.empty_like(like, dtype=torch.float32) for like in likes
    )
    kernels.mlp_backward(
        x=n, grad_out=grad_out, **_norm_options(n, norm), w1=w1, b1=b1, w2=w2, output_scale=scale,
        pre_act=pre_act, grad_x=grad_n, grad_w1=grad_w1, grad_b1=grad_b1, grad_w2=grad_w2, grad_b2=grads[0],
        grad_scale=None if scale is None else grads[1], dim=w1.shape[1], hidden=w1.shape[0],
        act=NUMBERS[act],
    )  # fmt: skip
    return grad_n, grad_w1, grad_b1, grad_w2, *grads


def reference(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, norm: str, eps: float, act: str, residual: bool, scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """The first result in plain PyTorch: the formula of `ops.mlp`."""
    dtype = dtype or w1.dtype
    w1, b1, w2, b2 = _folded(w1, b1, w2, b2, scale, dtype)
    tokens = x.permute(0, 2, 3, 1)
    n = normalized(tokens, norm, gamma, beta, eps).to(dtype)
    y = mlp_reference(n, w1, b1, w2, b2, act=act, residual=tokens if residual else None)
    return y.permute(0, 3, 1, 2)


def _folded(
    w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, scale: Tensor | None, dtype: torch.dtype
) -> tuple[Any, ...]:
    """Weights and biases in `dtype`, the second times LayerScale."""
    if scale is not None:
        w2, b2 = w2 * scale[:, None], None if b2 is None else b2 * scale
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (w1, b1, w2, b2))


def _sample_norm(
    tokens: Tensor, gamma: Tensor | None, beta: Tensor | None, moments: Tensor | None, norm: str, eps: float
) -> SampleNorm | None:
    """The norm, where it is one that the C++ kernels compute as they read x."""
    if norm != "group_norm":
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


def _pack(weight: Tensor, bias: Tensor | None, scale: Tensor | None, dtype: torch.dtype) -> PackedWeight:
    """A weight and its bias, times LayerScale, packed in `dtype`."""
    out_features, in_features = weight.shape
    scale = None if scale is None else to_float32(scale)
    packed = weight.new_empty(out_features * in_features, dtype=dtype)
    kernels.pack_linear(
        packed=packed, weight=to_float32(weight), scale=scale, out_features=out_features,
        in_features=in_features,
    )  # fmt: skip
    zeros = weight.new_zeros(out_features, dtype=torch.float32)
    bias = zeros if bias is None else to_float32(bias)
    return PackedWeight(packed, bias if scale is None else bias * scale, out_features, in_features)


def _backward_in_chunks(
    n: Tensor, grad_out: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for n (N, C), and for w1, b1, w2 and b2, by oneDNN."""
    grad_n, sums = torch.empty_like(n), _WeightGradients(w1)
    for rows in _chunks(n, w1):
        hidden, grad_hidden = _linear(n[rows], w1, b1), _linear(grad_out[rows], w2.t(), None)
        hidden, grad_hidden = _activate_backward(hidden, grad_hidden, act)
        grad_n[rows] = _linear(grad_hidden, w1.t(), None)
        sums.add(n[rows], grad_hidden, grad_out[rows], hidden)
    return grad_n, *sums.results(grad_out)


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
    """`onednn.linear`, and the same of PyTorch for dtypes that oneDNN does not have on this processor."""
    if onednn.has_dtype(x.dtype):
        return onednn.linear(x, weight, bias, act, residual)
    y = F.linear(x, weight, bias)
    y = y if residual is None else y + residual
    return F.gelu(y) if act == "gelu" else F.relu(y) if act == "relu" else y


@train_mlp.register_fake
def _(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, norm: str, eps: float, act: str, residual: bool, save_pre_act: bool,
    moments: Tensor | None = None, scale: Tensor | None = None, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, _, height, width = x.shape
    y, saved = _empty_output(x, dtype or w1.dtype), save_pre_act and supports_cpp(w1, dtype)
    return y, y.new_empty(batch * height * width if saved else 0, len(w1))


@train_mlp_backward.register_fake
def _(
    grad_out: Tensor, pre_act: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor,
    b2: Tensor | None, gamma: Tensor | None, beta: Tensor | None, norm: str, eps: float, act: str,
    residual: bool, moments: Tensor | None = None, scale: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, dim, height, width = x.shape
    grad_x = x.new_empty((batch, height, width, dim)).permute(0, 3, 1, 2)
    grad_b2 = w1.new_empty(dim)
    grad_gamma = x.new_empty(dim) if gamma is None else torch.empty_like(gamma)
    grad_scale = w1.new_empty(0 if scale is None else dim)
    return grad_x, *map(torch.empty_like, (w1, w1[:, 0], w2, grad_b2, grad_gamma, grad_gamma, grad_scale))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w1, b1, w2, b2, gamma, beta, *ctx.options, _, moments, scale, ctx.dtype = inputs
    ctx.set_materialize_grads(False)  # zeros as large as the hidden activations
    ctx.save_for_backward(x, w1, b1, w2, b2, gamma, beta, scale, moments, output[1])


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 15
    *inputs, moments, pre_act = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        grads = _differentiable_gradients(ctx, inputs, grad_out)
    else:
        *tensors, scale = inputs
        found = train_mlp_backward(grad_out, pre_act, *tensors, *ctx.options, moments, scale)
        grads = [None if tensor is None else grad for tensor, grad in zip(inputs, found, strict=True)]
    *grads, grad_scale = grads
    return *grads, *[None] * 6, grad_scale, None


def _differentiable_gradients(ctx: Any, inputs: list[Any], grad_out: Tensor) -> list[Tensor | None]:
    """The same where gradients of gradients are asked for (`create_graph=True`), in plain PyTorch."""
    *tensors, scale = inputs
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    arguments: Any = *tensors, *ctx.options, scale, ctx.dtype
    grads = iter(torch.autograd.grad(reference(*arguments), wanted, grad_out, create_graph=True))
    return [None if tensor is None or not tensor.requires_grad else next(grads) for tensor in inputs]


train_mlp.register_autograd(_backward, setup_context=_setup_context)
