"""Signatures of the C++ kernels: the table by which calls are checked.

A kernel is declared by a function without a body, whose parameters have the names and C types of the C++
function's, tensors first; type checkers check the calls by it, and a test compares it with the C++ sources.
Arguments are keywords in the order of the signature, and each tensor must be of the dtype that its pointer
type says, or may be none where it is optional: so neither swapped nor missing tensors reach C++. `T` is the
dtype of the first tensor, float32 or bfloat16. C++ takes one more argument, the number of threads.
"""

import ctypes
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, ParamSpec, get_args

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
P = ParamSpec("P")
Argument = Tensor | int | float | None
Call = tuple[Callable[..., None], tuple[Argument, ...]]
"""A C++ function, and its arguments but for the number of threads."""
Signature = dict[str, tuple[str, bool]]
"""Parameter -> its C type, and whether it may be null."""

SIGNATURES: Final[dict[str, Signature]] = {}
"""Kernel -> its signature."""
FLOAT32_ONLY: Final[set[str]] = set()
"""Kernels that exist for float32 alone."""
_recording = threading.local()


def _signature(declaration: Callable[..., Any]) -> Signature:
    signature: Signature = {}
    for name, parameter in inspect.signature(declaration).parameters.items():
        options = get_args(
            parameter.annotation
        )  # (Annotated, None) of an optional one, else (Tensor, C type)
        optional = type(None) in options
        signature[name] = get_args(options[0])[1] if optional else options[1], optional
    return signature


def _kernel(*dtypes: torch.dtype) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Declare a kernel for these dtypes, all that there are by default."""

    def declare(declaration: Callable[P, None]) -> Callable[P, None]:
        kernel = declaration.__name__
        signature = SIGNATURES[kernel] = _signature(declaration)
        if dtypes:
            FLOAT32_ONLY.add(kernel)
        names = tuple(signature)
        count = sum(c_type.endswith("*") for c_type, _ in signature.values())
        checked: dict[tuple[torch.dtype | None, ...], Callable[..., None]] = {}

        def check(tensors: tuple[Any, ...], types: tuple[torch.dtype | None, ...]) -> Callable[..., None]:
            """The C++ function for tensors of these dtypes, which the next call finds in `checked`."""
            for (name, (c_type, optional)), found in zip(signature.items(), types, strict=False):
                wanted = _POINTED.get(c_type.removeprefix("const "), types[0])
                if found != wanted and not (optional and found is None):
                    raise TypeError(f"{kernel}: {name} must be of {wanted}, got {found}")
            if types[0] is None or types[0] not in (dtypes or cpp.SUFFIXES):
                raise TypeError(f"{kernel}: there is no kernel for {types[0]}")
            function = getattr(cpp.load(), f"{kernel}_{cpp.SUFFIXES[types[0]]}")
            pointers = [ctypes.c_void_p] * count
            numbers = [_C_TYPES[c_type] for c_type, _ in list(signature.values())[count:]]
            function.argtypes, function.restype = [*pointers, *numbers, ctypes.c_int], None
            checked[types] = function
            return function

        def call(*args: P.args, **arguments: P.kwargs) -> None:
            if args or tuple(arguments) != names:
                raise TypeError(f"{kernel} takes the keywords {', '.join(names)}, in this order")
            values: tuple[Any, ...] = tuple(arguments.values())
            tensors = values[:count]
            types = tuple([None if x is None else x.dtype for x in tensors])
            function = checked.get(types) or check(tensors, types)
            calls: list[Call] | None = getattr(_recording, "calls", None)
            if calls is not None:
                calls.append((function, values))
            pointers = [None if x is None else x.data_ptr() for x in tensors]
            function(*pointers, *values[count:], torch.get_num_threads())

        return call

    return declare


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


@_kernel()
def attention(*, qkv: In, out: Out, batch: Long, tokens: Long, heads: Long, head_dim: Long) -> None:
    """Self-attention: out = softmax(q · kᵀ / √head_dim) · v; qkv (batch, tokens, 3, heads, head_dim)."""


@_kernel()
def depthwise_conv(
    *, x: In, taps: InFloat, bias: InFloat | None, out: Out, batch: Long, height: Long, width: Long,
    channels: Long, kernel: Int, star: Int, star_scale: Float, star_bias: Float,
) -> None:  # fmt: skip
    """Convolution of each channel of x (batch, height, width, channels), after a StarReLU if `star`."""


@_kernel()
def linear(
    *, x: In, weight: In, bias: InFloat, residual: In | None, residual_scale: InFloat | None, out: Out,
    rows: Long, in_features: Long, out_features: Long, norm: Int, act: Int, eps: Float,
) -> None:  # fmt: skip
    """Linear layer: out = act(norm(x) · weightᵀ + bias) + residual_scale · residual; weight packed."""


@_kernel()
def mlp(
    *, x: In, moments: InFloat | None, w1: In, b1: InFloat, w2: In, b2: InFloat, residual: In | None,
    residual_scale: InFloat | None, out: Out, pre_act: Out | None, samples: Long, positions: Long, dim: Long,
    hidden: Long, norm: Int, act: Int, eps: Float,
) -> None:  # fmt: skip
    """MLP: pre_act = norm(x) · w1ᵀ + b1, out = act(pre_act) · w2ᵀ + b2 + residual_scale · residual."""


@_kernel(torch.float32)
def pack_linear(*, weight: In, packed: Out, out_features: Long, in_features: Long) -> None:
    """The weight (out_features, in_features) in panels, as `linear` and `mlp` read it."""


@_kernel(torch.float32)
def mlp_backward(
    *, x: In, grad_out: In, w1: In, b1: In | None, w2: In, pre_act: In | None, grad_x: Out, grad_w1: Out,
    grad_b1: Out, grad_w2: Out, rows: Long, dim: Long, hidden: Long, act: Int,
) -> None:  # fmt: skip
    """Gradients of act(x · w1ᵀ + b1) · w2ᵀ; pre_act (rows, hidden) is recomputed where it is null."""


@_kernel()
def layer_norm(
    *, x: In, weight: InFloat | None, bias: InFloat | None, out: Out, tokens: Long, channels: Long, eps: Float
) -> None:
    """Layer norm: out = (x − mean(x)) / √(var(x) + eps) · weight + bias; x (tokens, channels)."""


@_kernel()
def pool_minus_self(
    *, x: In, out: Out, batch: Long, height: Long, width: Long, channels: Long, transposed: Int
) -> None:
    """Stencil: out = avg_pool3×3(x) − x of x (batch, height, width, channels), or its transpose."""


@_kernel()
def pool_residual(
    *, x: In, weight: InFloat, residual_scale: InFloat, out: Out, moments: OutFloat, batch: Long,
    height: Long, width: Long, channels: Long, eps: Float, next_eps: Float,
) -> None:  # fmt: skip
    """Pooling: out = residual_scale · x + weight / σ(x) · (avg_pool3×3(x) − x); moments of out (batch, 2)."""


@_kernel()
def cycle_means(
    *, x: In, offsets: InInt, out: Out, batch: Long, height: Long, width: Long, channels: Long
) -> None:
    """Means (batch, 3, channels) of x (batch, height, width, channels) shifted along width, height, not."""


@_kernel()
def cycle_softmax(*, logits: In, out: OutFloat, batch: Long, channels: Long) -> None:
    """Softmax over the last of logits (batch, channels, 3): out (batch, 3, channels)."""


@_kernel()
def cycle_mix(
    *, x: In, offsets: InInt, branch_weights: InFloat, w_width: In, b_width: InFloat, w_height: In,
    b_height: InFloat, w_plain: In, b_plain: InFloat, w_proj: In, b_proj: InFloat, residual: In | None,
    residual_scale: InFloat | None, out: Out, batch: Long, height: Long, width: Long, channels: Long,
) -> None:  # fmt: skip
    """CycleMLP: out = proj(Σ branch_weightsᵢ · linearᵢ(shiftᵢ(x))) + residual_scale · residual."""
