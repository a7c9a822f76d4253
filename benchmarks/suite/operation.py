"""What kind of work an operation is, by the name under which PyTorch's profiler knows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from torch.profiler import record_function

from metaformer.ops import cpp

Kind = Literal["products", "passes", "rest"]

OURS: Final = "metaformer::cpp::"
"""Before the name of a C++ kernel of this library; `metaformer::` alone is an operation made of others."""
MULTIPLYING: Final = ("attention", "cycle_mix", "depthwise_conv", "linear", "mlp", "mlp_backward")
"""Such kernels that are products, with whatever they do beside them; the others are passes over memory."""
PRODUCTS: Final = (
    "mkldnn::",
    "mkl::",
    "aten::mm",
    "aten::addmm",
    "aten::_addmm_activation",
    "aten::bmm",
    "aten::baddbmm",
    "aten::convolution",
    "aten::_convolution",
    "aten::mkldnn_convolution",
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product",
)
"""Beginnings of names; what happens inside counts too: a weight that is laid out, a map that is copied."""
UNMOVING: Final = frozenset(
    (
        "aten::alias",
        "aten::as_strided",
        "aten::contiguous",
        "aten::detach",
        "aten::empty",
        "aten::empty_like",
        "aten::empty_strided",
        "aten::expand",
        "aten::flatten",
        "aten::permute",
        "aten::reshape",
        "aten::resize_",
        "aten::select",
        "aten::slice",
        "aten::split",
        "aten::t",
        "aten::to",
        "aten::transpose",
        "aten::unbind",
        "aten::unflatten",
        "aten::unsqueeze",
        "aten::view",
    )
)
"""Operations that take memory or look at it in another way; a copy that one of them makes is told inside."""


def kind(name: str) -> Kind:
    """Say what an operation's own time is spent on; what is no operation of PyTorch is the rest."""
    if name.startswith(PRODUCTS) or name.removeprefix(OURS) in MULTIPLYING:
        return "products"
    return "passes" if name.startswith((OURS, "aten::")) and name not in UNMOVING else "rest"


@contextmanager
def named_kernels() -> Iterator[None]:
    """Let the profiler see our C++ kernels, which it does not know, whoever calls them.

    `deploy.folded.stage` keeps functions of the library and calls them itself, so that it is their type that
    has to tell.
    """
    kernels = cpp.load()
    if kernels is None:
        yield
        return
    functions: Any = kernels._FuncPtr
    call = functions.__call__

    def named(function: Any, *arguments: Any) -> Any:
        with record_function(f"{OURS}{function.__name__.rpartition('_')[0]}"):  # without the type at its end
            return call(function, *arguments)

    functions.__call__ = named
    try:
        yield
    finally:
        del functions.__call__
