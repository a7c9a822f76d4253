"""How a contender's time divides into products, passes over memory and the rest; on CPUs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function, schedule
from torch.profiler import profile as torch_profile

from benchmarks.suite.operation import Kind, kind, named_kernels

WARMUP: Final = 3
"""Runs inside the profiler that are not looked at: its first allocations disturb the heap, and large
operations seem to take three times as long."""
RUNS: Final = 3
"""Runs of which the quickest is looked at."""
CLOSE: Final = 0.15
"""A profiled run is to differ from the others by less than this part."""
TRIES: Final = 3
"""Profiles of which the closest is taken, where none is close enough."""
_RUN: Final = "metaformer suite run"


@dataclass(frozen=True)
class Profile:
    """Parts of a run's time, which are 1 together."""

    products: float
    """Convolutions, products and attention, with what is fused into them. Of generated code the calls of
    libraries that can be seen, so that there may be more."""
    passes: float
    """Everything else that reads or writes maps. Of generated code all that is not seen as a product."""
    rest: float | None
    """Python, dispatch, allocation, and what the profiler costs; None of generated code."""
    slowdown: float
    """A profiled run's time by that of the others."""

    def __str__(self) -> str:
        """In a line."""
        if self.rest is None:
            return f"products at least {self.products:.0%}, generated code and the rest {self.passes:.0%}"
        return (
            f"products {self.products:.0%}, passes over memory {self.passes:.0%}, "
            f"Python, dispatch and allocation {self.rest:.0%}"
        )


def profile(module: nn.Module, images: Tensor, generated: bool = False) -> Profile:
    """Run a module under PyTorch's profiler, until a profiled run takes about as long as another.

    Args:
        module: what to run; run it before, so that nothing is new to it.
        images: what it is given.
        generated: a compiler made it, and the profiler sees only the libraries that are called.
    """
    found: list[Profile] = []
    while len(found) < TRIES and not any(_strange(each) <= CLOSE for each in found):
        found.append(_once(module, images, generated))
    return min(found, key=_strange)


def _strange(profile: Profile) -> float:
    return abs(profile.slowdown - 1)


def _once(module: nn.Module, images: Tensor, generated: bool) -> Profile:
    plain = min(_seconds(module, images) for _ in range(RUNS + 1))
    plan = schedule(wait=0, warmup=WARMUP, active=RUNS, repeat=1)
    with named_kernels(), torch_profile(activities=[ProfilerActivity.CPU], schedule=plan) as profiler:
        for _ in range(WARMUP + RUNS):
            with record_function(_RUN):
                module(images)
            profiler.step()
    events: Any = profiler.events()
    run = min((event for event in events if event.name == _RUN), key=lambda event: event.cpu_time_total)
    sums: dict[Kind, float] = {"products": 0.0, "passes": 0.0, "rest": 0.0}
    for what, microseconds in _parts(run):
        sums[what] += microseconds / run.cpu_time_total
    slowdown = 1e-6 * run.cpu_time_total / plain
    if generated:
        return Profile(sums["products"], 1 - sums["products"], None, slowdown)
    return Profile(sums["products"], sums["passes"], 1 - sums["products"] - sums["passes"], slowdown)


def _seconds(module: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    module(images)
    return time.perf_counter() - start


def _parts(event: Any, inside: Kind = "rest") -> Iterator[tuple[Kind, float]]:
    """The own time of an operation and of those that it calls; all that a product calls belongs to it."""
    what = inside if inside == "products" else kind(event.name)
    yield what, event.self_cpu_time_total
    for child in event.cpu_children:
        yield from _parts(child, what)
