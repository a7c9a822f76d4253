"""Networks of equal cost: all widths by one factor, and where no width fits the depth, too."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import median
from typing import Final, NamedTuple

import torch
from torch import nn

from metaformer.bench.counts import count
from metaformer.bench.timing import measure, ratios
from metaformer.errors import ConfigError, TrainingError
from metaformer.models.build import on_meta

STEPS: Final = (8, 4, 2, 1)
"""Widths are multiples of the first of these that comes near enough."""
LARGEST: Final = 8.0
"""Factor by which widths grow, or shrink, at most."""
DEEPER: Final = 4
"""Blocks that the deepest stage gets more or fewer, at most."""
BATCH: Final = 8
"""Images of a batch whose latency or memory is measured."""
ROUNDS: Final = 9
"""Rounds of a latency, in turns with the baseline's, after which its interval is looked at."""
MOST_ROUNDS: Final = 10 * ROUNDS
COVERAGE: Final = 0.95
"""Probability that the interval of a latency holds its median."""


class Shape(NamedTuple):
    """What the budget may change of a network."""

    dims: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""

    def changes(self, before: "Shape") -> tuple[str, ...]:
        """What differs, as `dims: (32, 64) to (30, 60)`."""
        pairs = zip(self._fields, before, self, strict=True)
        return tuple(f"{name}: {old} to {new}" for name, old, new in pairs if old != new)


def match_budget(
    start: Shape, cost: Callable[[Shape], float], target: float, tolerance: float, deeper: int = DEEPER
) -> Shape:
    """The shape nearest to `start` whose cost is the target's: widths first, then depths.

    Args:
        start: the skeleton's.
        cost: grows with widths and depths; raises an error for a shape that cannot be.
        target: cost to match.
        tolerance: largest difference, as a fraction of the target.
        deeper: blocks that the deepest stage gets more or fewer, at most.

    Raises:
        ConfigError: no shape comes near enough; the message names the nearest.
    """
    tries: list[Shape] = []
    refusals: list[Exception] = []

    @cache
    def known(shape: Shape) -> float | None:
        try:
            return cost(shape)
        except TrainingError:  # of a measurement, not of the shape
            raise
        # a mixer, perhaps a stranger's, takes some widths only, and says so in its own way
        except (ValueError, TypeError, RuntimeError, AssertionError, ZeroDivisionError) as error:
            refusals.append(error)
            return None

    def excess(shape: Shape) -> float:
        return (known(shape) or math.inf) / target - 1

    if abs(excess(start)) <= tolerance:
        return start
    for depths in _depths(start.depths, deeper):
        for step in STEPS:
            shapes = [Shape(dims, depths) for dims in widths(start.dims, step)]
            found = nearest(shapes, known, target)
            if found is not None and abs(excess(found)) <= tolerance:
                return found
            tries += [found] if found else []
    if not tries:
        raise ConfigError(f"no width can be built ({refusals[-1]})")
    best = min(tries, key=lambda shape: abs(excess(shape)))
    raise ConfigError(
        f"no width or depth comes within {tolerance:.1%} of the budget; the nearest is dims {best.dims}, "
        f"depths {best.depths}, {excess(best):+.1%}"
    )


def nearest(shapes: list[Shape], cost: Callable[[Shape], float | None], target: float) -> Shape | None:
    """Of shapes in the order of their costs the nearest to the target, by bisection; None where none can be.

    Args:
        shapes: smaller ones first.
        cost: of a shape; None for one that cannot be.
        target: the cost that is looked for.
    """
    low, high = 0, len(shapes)
    while low < high:
        middle = (low + high) // 2
        value = cost(shapes[middle])
        if value is None:
            shapes = shapes[:middle] + shapes[middle + 1 :]
            high -= 1
        elif value < target:
            low = middle + 1
        else:
            high = middle
    around = shapes[max(0, low - 1) : low + 1]
    found = {shape: value for shape in around if (value := cost(shape)) is not None}
    return min(found, key=lambda shape: abs(found[shape] - target), default=None)


def widths(dims: tuple[int, ...], step: int) -> list[tuple[int, ...]]:
    """All widths that one factor gives, each rounded to a multiple of `step`, the smallest first."""
    factors = {1 / LARGEST}
    for dim in dims:  # where its rounded value changes
        factors.update((j - 0.5) * step / dim for j in range(1, math.ceil(LARGEST * dim / step) + 1))
    found: dict[tuple[int, ...], None] = {}
    for factor in sorted(factors):
        if 1 / LARGEST <= factor <= LARGEST:
            found[tuple(max(1, math.floor(factor * dim / step + 0.5 + 1e-9)) * step for dim in dims)] = None
    return list(found)


def _depths(depths: tuple[int, ...], most: int) -> Iterator[tuple[int, ...]]:
    """These depths, then with ever more blocks added to the deepest stage, or taken from it."""
    yield depths
    deepest = depths.index(max(depths))
    for change in range(1, most + 1):
        for more in (change, -change):
            if depths[deepest] + more > 0:
                yield (*depths[:deepest], depths[deepest] + more, *depths[deepest + 1 :])


def count_cost(network: nn.Module, match: str, image_size: int) -> int:
    """Parameters or multiply-accumulates of a network, which may be on the meta device.

    Args:
        network: what is counted.
        match: `parameters` or `macs`.
        image_size: height and width of its input.
    """
    return parameters(network) if match == "parameters" else count(network, (image_size,) * 2).macs


def light(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose parameters hold no numbers, where its mixers can be built without."""
    return on_meta(build) or build()


def parameters(network: nn.Module) -> int:
    """Trainable and fixed parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def latency_ratio(
    network: nn.Module, baseline: nn.Module, image_size: int, device: torch.device, precision: float
) -> float:
    """Time of a forward pass relative to the baseline's: the median over rounds that alternate.

    There are more rounds until half the 95 % interval of the median is within the precision. It speaks of
    these minutes: what else the machine does later may weigh on one network more than on another.

    Args:
        network: what is measured.
        baseline: what it is measured in turns with.
        image_size: height and width of their input.
        device: where they run.
        precision: half the interval's length at most, as a fraction of the slower network's time.

    Raises:
        TrainingError: the machine is too busy for it.
    """
    images = torch.zeros(BATCH, 3, image_size, image_size, device=device)
    pair = [one.eval().to(device, memory_format=torch.channels_last) for one in (network, baseline)]  # type: ignore[call-overload]
    found: list[float] = []
    while len(found) < MOST_ROUNDS:
        own, other = measure(pair, [images, images], rounds=ROUNDS)
        found += ratios(other, own)
        low, high = median_interval(found)
        if (high - low) / 2 <= precision * max(1.0, median(found)):
            return median(found)
    raise TrainingError(
        f"budget.match latency: known to ±{(high - low) / 2:.1%} after {len(found)} rounds, which is to be "
        f"±{precision:.1%}: measure on a machine that does nothing else, or raise budget.tolerance"
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval of a median by order statistics, whatever the distribution; nine values at least."""
    count, ordered = len(values), sorted(values)
    below, rank = 0.5**count, 0  # probability that fewer than `rank` + 1 values are below the median
    while below + math.comb(count, rank + 1) * 0.5**count <= (1 - COVERAGE) / 2:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return ordered[rank], ordered[-1 - rank]
