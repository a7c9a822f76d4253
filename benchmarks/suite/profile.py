"""Profile of a run on a CPU: time in products, in passes over memory and in the rest; peak memory."""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function, schedule
from torch.profiler import profile as torch_profile

from metaformer.ops import cpp

WARMUP: Final = 3
"""Profiled runs that are discarded: the profiler's first allocations disturb the heap, and large operations
seem to take three times as long."""
RUNS: Final = 3
"""Profiled runs of which the fastest counts."""
CLOSE: Final = 0.15
"""Largest difference of a profiled run's time from a plain run's, relative to it."""
TRIES: Final = 3
"""Profiles of which the closest is taken where none is within `CLOSE`."""
_RUN: Final = "metaformer suite run"
Kind = Literal["products", "passes", "rest"]
OURS: Final = "metaformer::cpp::"
"""Prefix of this library's C++ kernels; `metaformer::` alone is an operation made of others."""
CPP_PRODUCTS: Final = ("attention", "cycle_mix", "depthwise_conv", "linear", "mlp", "mlp_backward")
"""C++ kernels that count as products, with what is fused into them; the others are passes over memory."""
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
"""Prefixes of products' names; what they call counts too, such as packing a weight or copying an input."""
VIEWS: Final = frozenset(
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
"""Operations that allocate or view memory; a copy that one of them makes is recorded inside it."""


@dataclass(frozen=True)
class Profile:
    """Shares of a run's time, which sum to 1."""

    products: float
    """Convolutions, products and attention, with what is fused into them. Of generated code the calls of
    libraries alone: a lower bound."""
    passes: float
    """Everything else that reads or writes tensors. Of generated code all but the products."""
    rest: float | None
    """Python, dispatch, allocation and the profiler's overhead; None for generated code."""
    slowdown: float
    """A profiled run's time relative to a plain run's."""
    kernels: tuple[str, ...] = ()
    """Our C++ kernels and the libraries' products that ran, in alphabetical order."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Profile":
        """Undo `asdict`, after JSON."""
        return cls(**{**values, "kernels": tuple(values.get("kernels", ()))})

    def __str__(self) -> str:
        if self.rest is None:
            return f"products at least {self.products:.0%}, generated code and the rest {self.passes:.0%}"
        return (
            f"products {self.products:.0%}, passes over memory {self.passes:.0%}, "
            f"Python, dispatch and allocation {self.rest:.0%}"
        )


def profile(module: nn.Module, images: Tensor, generated: bool = False) -> Profile:
    """Run a module under PyTorch's profiler until a profiled run takes about as long as a plain one.

    Args:
        module: the module; run it before, to warm it up.
        images: its input.
        generated: whether it is compiled code, of which the profiler records calls of libraries alone.
    """
    profiles: list[Profile] = []
    while len(profiles) < TRIES and not any(_distortion(each) <= CLOSE for each in profiles):
        profiles.append(_once(module, images, generated))
    return min(profiles, key=_distortion)


def _distortion(profile: Profile) -> float:
    return abs(profile.slowdown - 1)


def _once(module: nn.Module, images: Tensor, generated: bool) -> Profile:
    plain = min(_seconds(module, images) for _ in range(RUNS + 1))
    plan = schedule(wait=0, warmup=WARMUP, active=RUNS, repeat=1)
    with recorded_kernels(), torch_profile(activities=[ProfilerActivity.CPU], schedule=plan) as profiler:
        for _ in range(WARMUP + RUNS):
            with record_function(_RUN):
                module(images)
            profiler.step()
    events: Any = profiler.events()
    run = min((event for event in events if event.name == _RUN), key=lambda event: event.cpu_time_total)
    sums: dict[Kind, float] = {"products": 0.0, "passes": 0.0, "rest": 0.0}
    for part, microseconds in _parts(run):
        sums[part] += microseconds / run.cpu_time_total
    slowdown, kernels = 1e-6 * run.cpu_time_total / plain, tuple(sorted(set(_kernels(run))))
    if generated:
        return Profile(sums["products"], 1 - sums["products"], None, slowdown, kernels)
    rest = 1 - sums["products"] - sums["passes"]
    return Profile(sums["products"], sums["passes"], rest, slowdown, kernels)


def _seconds(module: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    module(images)
    return time.perf_counter() - start


def _parts(event: Any, inside: Kind = "rest") -> Iterator[tuple[Kind, float]]:
    """Kind and own time of an operation and of those it calls; what a product calls is part of it."""
    own = inside if inside == "products" else kind(event.name)
    yield own, event.self_cpu_time_total
    for child in event.cpu_children:
        yield from _parts(child, own)


def _kernels(event: Any) -> Iterator[str]:
    """Our kernels and products among an operation and those it calls; what a product calls is part of it."""
    if event.name.startswith(OURS):
        yield event.name.removeprefix(OURS)
    elif kind(event.name) == "products":
        yield event.name
    else:
        for child in event.cpu_children:
            yield from _kernels(child)


def kind(name: str) -> Kind:
    """Kind of an operation by the profiler's name of it; what is no operation of PyTorch is the rest."""
    if name.startswith(PRODUCTS) or name.removeprefix(OURS) in CPP_PRODUCTS:
        return "products"
    return "passes" if name.startswith((OURS, "aten::")) and name not in VIEWS else "rest"


@contextmanager
def recorded_kernels() -> Iterator[None]:
    """Record our C++ kernels in the profiler, which does not know them.

    A replayed stage calls functions of the library itself, so it is their type that is patched.
    """
    kernels = cpp.load()
    if kernels is None:
        yield
        return
    functions: Any = kernels._FuncPtr
    call = functions.__call__

    def recorded(function: Any, *arguments: Any) -> Any:
        with record_function(f"{OURS}{function.__name__.rpartition('_')[0]}"):  # without the dtype suffix
            return call(function, *arguments)

    functions.__call__ = recorded
    try:
        yield
    finally:
        del functions.__call__


def peak_memory(module: nn.Module, images: Tensor) -> int:
    """Peak memory of a run in bytes, beside weights and images; run the module before, to warm it up.

    On CUDA the allocator counts. On the CPU the profiler records each allocation of PyTorch's allocator,
    Inductor's buffers included, but not the memory of oneDNN and OpenVINO.
    """
    module.zero_grad(set_to_none=True)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        module(images)
        return torch.cuda.max_memory_allocated(images.device) - before
    with torch_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module(images)
    return max(accumulate(_allocations(profiler)), default=0)


def _allocations(profiler: Any) -> Iterable[int]:
    """Bytes allocated, and as negative numbers freed, in order of time."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return [int(event["args"]["Bytes"]) for event in sorted(memory, key=lambda event: event["ts"])]
