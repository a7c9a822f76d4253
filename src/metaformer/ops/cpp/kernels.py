"""The C++ kernels as Python functions: the table of their arguments' names and types.

Each function has the parameters of the C++ function, by name and C type, tensors first; a test compares them
with the C++ sources. They are keywords, and each tensor must be of the dtype that its pointer type says, or
none where it is optional: so neither swapped nor missing tensors reach C++. `T` is the dtype of the first
tensor, float32 or bfloat16. C++ takes one more argument, the number of threads.
"""

import ctypes
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar, get_args

import torch
from torch import Tensor

from metaformer.ops import cpp

In = Annotated[Tensor, "const T*"]
Out = Annotated[Tensor, "T*"]
InFloat = Annotated[Tensor, "const float*"]
OutFloat = Annotated[Tensor, "float*"]
InInt = Annotated[Tensor, "const int*"]
Long = Annotated[int, "long"]
Int = Annotated[int, "int"]
Float = Annotated[float, "float"]

_C_TYPES: Final = {"long": ctypes.c_long, "int": ctypes.c_int, "float": ctypes.c_float}
_POINTED: Final = {"float*": torch.float32, "int*": torch.int32}
F = TypeVar("F", bound=Callable[..., None])
Call = tuple[Callable[..., None], tuple[Tensor | float | None, ...]]
"""A C++ function, and its arguments but for the number of threads."""
Signature = dict[str, tuple[str, bool]]
"""Parameter -> its C type, and whether it may be null."""

SIGNATURES: Final[dict[str, Signature]] = {}
"""Kernel -> its signature."""
_functions: Final[dict[tuple[object, ...], Callable[..., None]]] = {}
"""Kernel and its tensors' dtypes, once they were checked -> the C++ function."""
_recording = threading.local()


def _declare(function: F) -> F:
    """Enter a function into the table."""
    signature = SIGNATURES[function.__name__] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        options = get_args(parameter.annotation)  # (Annotated, None) if optional, else (Tensor, C type)
        optional = type(None) in options
        signature[name] = get_args(options[0])[1] if optional else options[1], optional
    return function


def _call(kernel: str, tensors: tuple[Tensor | None, ...], numbers: tuple[float, ...]) -> None:
    """Call the C++ function for the tensors' dtypes, with PyTorch's number of threads."""
    key: list[object] = [kernel]
    pointers: list[int | None] = []
    for x in tensors:
        key.append(None if x is None else x.dtype)
        pointers.append(None if x is None else x.data_ptr())
    # dtypes that were checked once lead to the function: checking each argument costs as much as the call
    function = _functions.get(tuple(key)) or _check(*key)
    calls: list[Call] | None = getattr(_recording, "calls", None)
    if calls is not None:
        calls.append((function, (*tensors, *numbers)))
    function(*pointers, *numbers, torch.get_num_threads())


def _check(kernel: Any, *dtypes: Any) -> Callable[..., None]:
    """The C++ function for tensors of these dtypes, None for one that is none."""
    signature = SIGNATURES[kernel]
    for (name, (c_type, optional)), found in zip(signature.items(), dtypes, strict=False):
        wanted = _POINTED.get(c_type.removeprefix("const "), dtypes[0])
        if found != wanted and not (optional and found is None):
            raise TypeError(f"{kernel}: {name} must be of {wanted}, got {found}")
    if dtypes[0] not in cpp.SUFFIXES:
        raise TypeError(f"{kernel}: there is no kernel for {dtypes[0]}")
    function: Any = getattr(cpp.load(), f"{kernel}_{cpp.SUFFIXES[dtypes[0]]}")
    c_types = [c_type for c_type, _ in signature.values()]
    types = [ctypes.c_void_p if c_type.endswith("*") else _C_TYPES[c_type] for c_type in c_types]
    function.argtypes, function.restype = [*types, ctypes.c_int], None
    _functions[kernel, *dtypes] = function
    return function


@contextmanager
def record_calls() -> Iterator[list[Call]]:
    """Collect the kernel calls that this thread makes."""
    calls: list[Call] = []
    outer: list[Call] | None = getattr(_recording, "calls", None)
    _recording.calls = calls
    try:
        yield calls
    finally:
        _recording.calls = outer
        if outer is not None:
            outer += calls


def is_recording() -> bool:
    """Whether this thread's kernel calls are collected."""
    return getattr(_recording, "calls", None) is not None


@_declare
def attention(*, qkv: In, out: Out, batch: Long, tokens: Long, heads: Long, head_dim: Long) -> None:
    """Self-attention: out = softmax(q · kᵀ / √head_dim) · v; qkv (batch, tokens, 3, heads, head_dim)."""
    _call("attention", (qkv, out), (batch, tokens, heads, head_dim))


@_declare
def conv(
    *, x: In, weight: In, bias: InFloat, out: Out, batch: Long, height: Long, width: Long, channels: Long,
    kernel: Long, stride: Long, padding: Long, depth: Long, columns: Long,
) -> None:  # fmt: skip
    """Strided convolution of x (batch, height, width, channels) by patches; weight packed, depth inputs."""
    numbers = batch, height, width, channels, kernel, stride, padding, depth, columns
    _call("conv", (x, weight, bias, out), numbers)


@_declare
def depthwise_conv(
    *, x: In, taps: InFloat, bias: InFloat | None, out: Out, batch: Long, height: Long, width: Long,
    channels: Long, kernel: Int, star: Int, star_scale: Float, star_bias: Float,
) -> None:  # fmt: skip
    """Convolution of each channel of x (batch, height, width, channels), after a StarReLU if `star`."""
    tensors = x, taps, bias, out
    _call("depthwise_conv", tensors, (batch, height, width, channels, kernel, star, star_scale, star_bias))


@_declare
def global_pool(
    *, x: In, weight: InFloat | None, bias: InFloat | None, out: Out, batch: Long, positions: Long,
    channels: Long, norm: Int, eps: Float,
) -> None:  # fmt: skip
    """Mean over positions: out (batch, channels) = weight · mean(norm(x)) + bias."""
    _call("global_pool", (x, weight, bias, out), (batch, positions, channels, norm, eps))


@_declare
def linear(
    *, x: In, weight: In, bias: InFloat, residual: In | None, residual_scale: InFloat | None, out: Out,
    rows: Long, in_features: Long, out_features: Long, norm: Int, act: Int, eps: Float,
) -> None:  # fmt: skip
    """Linear layer: out = act(norm(x) · weightᵀ + bias) + residual_scale · residual; weight packed."""
    tensors = x, weight, bias, residual, residual_scale, out
    _call("linear", tensors, (rows, in_features, out_features, norm, act, eps))


@_declare
def mlp(
    *, x: In, moments: InFloat | None, gamma: InFloat | None, beta: InFloat | None, w1: In, b1: InFloat,
    w2: In, b2: InFloat, residual: In | None, residual_scale: InFloat | None, out: Out, pre_act: Out | None,
    samples: Long, positions: Long, dim: Long, hidden: Long, norm: Int, act: Int, eps: Float,
) -> None:  # fmt: skip
    """MLP: pre_act = norm(x) · w1ᵀ + b1, out = act(pre_act) · w2ᵀ + b2 + residual_scale · residual."""
    tensors = x, moments, gamma, beta, w1, b1, w2, b2, residual, residual_scale, out, pre_act
    _call("mlp", tensors, (samples, positions, dim, hidden, norm, act, eps))


@_declare
def pack_linear(
    *, packed: Out, weight: InFloat, scale: InFloat | None, out_features: Long, in_features: Long
) -> None:
    """The weight (out_features, in_features), times scale (out_features,), in panels as `linear` reads it."""
    _call("pack_linear", (packed, weight, scale), (out_features, in_features))


@_declare
def mlp_backward(
    *, x: In, grad_out: In, moments: InFloat | None, gamma: InFloat | None, beta: InFloat | None,
    w1: InFloat, b1: InFloat | None, w2: InFloat, output_scale: InFloat | None, pre_act: In | None,
    grad_x: OutFloat, grad_w1: OutFloat, grad_b1: OutFloat, grad_w2: OutFloat, grad_b2: OutFloat,
    grad_scale: OutFloat | None, samples: Long, positions: Long, dim: Long, hidden: Long, norm: Int, act: Int,
) -> None:  # fmt: skip
    """Gradients of act(n · w1ᵀ + b1) · (output_scale · w2)ᵀ + b2, n = norm(x), for n and all behind it.

    pre_act (samples · positions, hidden) is recomputed where it is null.
    """
    tensors = (
        x, grad_out, moments, gamma, beta, w1, b1, w2, output_scale, pre_act, grad_x, grad_w1, grad_b1,
        grad_w2, grad_b2, grad_scale,
    )  # fmt: skip
    _call("mlp_backward", tensors, (samples, positions, dim, hidden, norm, act))


@_declare
def sample_moments(*, x: In, out: OutFloat, batch: Long, positions: Long, channels: Long, eps: Float) -> None:
    """Mean and 1/σ, out (batch, 2), of each sample of x (batch, positions, channels)."""
    _call("sample_moments", (x, out), (batch, positions, channels, eps))


@_declare
def group_norm_backward(
    *, x: In, grad_out: InFloat, residual: In | None, moments: InFloat, gamma: InFloat | None, grad_x: Out,
    grad_gamma: OutFloat, grad_beta: OutFloat, batch: Long, positions: Long, channels: Long,
) -> None:  # fmt: skip
    """Gradients of (x − mean) / σ · gamma + beta over samples; `residual` is added to that for x."""
    tensors = x, grad_out, residual, moments, gamma, grad_x, grad_gamma, grad_beta
    _call("group_norm_backward", tensors, (batch, positions, channels))


@_declare
def layer_norm(
    *, x: In, weight: InFloat | None, bias: InFloat | None, out: Out, tokens: Long, channels: Long, eps: Float
) -> None:
    """Layer norm: out = (x − mean(x)) / √(var(x) + eps) · weight + bias; x (tokens, channels)."""
    _call("layer_norm", (x, weight, bias, out), (tokens, channels, eps))


@_declare
def pool_minus_self(
    *, x: In, out: Out, batch: Long, height: Long, width: Long, channels: Long, transposed: Int
) -> None:
    """Stencil: out = avg_pool3×3(x) − x of x (batch, height, width, channels), or its transpose."""
    _call("pool_minus_self", (x, out), (batch, height, width, channels, transposed))


@_declare
def pool_residual(
    *, x: In, weight: InFloat, residual_scale: InFloat, factors: InFloat | None, out: Out,
    x_moments: OutFloat | None, moments: OutFloat, batch: Long, height: Long, width: Long, channels: Long,
    eps: Float, next_eps: Float,
) -> None:  # fmt: skip
    """Pooling: out = residual_scale · x + factors · weight / σ(x) · (avg_pool3×3(x) − x), with moments.

    Factors (batch,) are those of samples; moments of x and of out (batch, 2).
    """
    tensors = x, weight, residual_scale, factors, out, x_moments, moments
    _call("pool_residual", tensors, (batch, height, width, channels, eps, next_eps))


@_declare
def pool_residual_backward(
    *, grad_out: In, x: In, weight: InFloat, factors: InFloat | None, moments: InFloat, grad_x: Out,
    grad_weight: OutFloat, batch: Long, height: Long, width: Long, channels: Long,
) -> None:  # fmt: skip
    """Gradients of `pool_residual` with a residual_scale of 1, by the moments of x."""
    tensors = grad_out, x, weight, factors, moments, grad_x, grad_weight
    _call("pool_residual_backward", tensors, (batch, height, width, channels))


@_declare
def cycle_shift(
    *, x: In, offsets: InInt, out: Out, batch: Long, height: Long, width: Long, channels: Long,
    along_height: Int,
) -> None:  # fmt: skip
    """Channel c of x (batch, height, width, channels) read offsets[c] positions away on one axis."""
    _call("cycle_shift", (x, offsets, out), (batch, height, width, channels, along_height))


@_declare
def cycle_means(
    *, x: In, offsets: InInt, out: Out, batch: Long, height: Long, width: Long, channels: Long
) -> None:
    """Means (batch, 3, channels) of x (batch, height, width, channels) shifted along width, height, not."""
    _call("cycle_means", (x, offsets, out), (batch, height, width, channels))


@_declare
def cycle_softmax(*, logits: In, out: OutFloat, batch: Long, channels: Long) -> None:
    """Softmax over the last of logits (batch, channels, 3): out (batch, 3, channels)."""
    _call("cycle_softmax", (logits, out), (batch, channels))


@_declare
def cycle_mix(
    *, x: In, offsets: InInt, branch_weights: InFloat, w_width: In, b_width: InFloat, w_height: In,
    b_height: InFloat, w_plain: In, b_plain: InFloat, w_proj: In, b_proj: InFloat, residual: In | None,
    residual_scale: InFloat | None, out: Out, batch: Long, height: Long, width: Long, channels: Long,
) -> None:  # fmt: skip
    """CycleMLP: out = proj(Σ branch_weightsᵢ · linearᵢ(shiftᵢ(x))) + residual_scale · residual."""
    tensors = (
        x, offsets, branch_weights, w_width, b_width, w_height, b_height, w_plain, b_plain, w_proj, b_proj,
        residual, residual_scale, out,
    )  # fmt: skip
    _call("cycle_mix", tensors, (batch, height, width, channels))
