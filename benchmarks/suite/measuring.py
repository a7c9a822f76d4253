"""One row: every contender made ready, then all of them timed in turn."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.suite.ceilings import CEILINGS, Ceiling
from benchmarks.suite.contender import Contender, Ready, prepare
from benchmarks.suite.forms import COMPILERS
from benchmarks.suite.memory import peak
from benchmarks.suite.outcome import Outcome, RowResult
from benchmarks.suite.profile import profile
from benchmarks.suite.row import Row
from benchmarks.suite.sides import build
from metaformer.bench.counts import Counts, count
from metaformer.bench.run import DTYPES
from metaformer.bench.timing import Machine, measure

Tell = Callable[[Mapping[str, Any]], object]
BACKWARD = 3
"""A training step's arithmetic by the forward pass's: gradients of maps and of weights cost as much again."""
LINE = 300
"""Letters of a failure that are told."""


def measure_row(
    row: Row,
    rounds: int,
    *,
    skip: Mapping[str, str] | None = None,
    ceilings: bool = True,
    tell: Tell = lambda event: None,
) -> RowResult:
    """Prepare and time a row's contenders in this process; one that fails is told, and the others go on.

    Whoever of ours is the quickest of a claim is profiled at the end.

    Args:
        row: what to measure.
        rounds: how often each contender is timed.
        skip: contenders to leave out, with the reason.
        ceilings: measure what the machine can do at best in the same rounds.
        tell: is given each event: `preparing`, `prepared`, `failed`, `round`.
    """
    skip = skip or {}
    ready: dict[str, Ready] = {}
    outcomes: dict[str, Outcome] = {}
    for name in (*row.contenders, *(_ceilings(row) if ceilings else ())):
        if name in skip:
            outcomes[name] = Outcome(name, failure=skip[name])
            continue
        tell({"preparing": name})
        start = time.perf_counter()
        try:
            ready[name] = prepare(name, row)
        except Exception as error:  # of compilers and other libraries: anything
            outcomes[name] = Outcome(name, failure=one_line(error))
            tell({"failed": name, "reason": outcomes[name].failure})
            continue
        seconds = time.perf_counter() - start
        outcomes[name] = _described(name, row, ready[name], seconds)
        tell({"prepared": name, "seconds": round(seconds, 1)})
    outcomes.update(_timed(row, ready, outcomes, rounds, tell))
    outcomes.update(_profiled(row, ready, outcomes))
    return RowResult(row, tuple(outcomes.values()), Machine.here(torch.device(row.device)))


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return (text if kind == "ConfigError" else f"{kind}: {text}".removesuffix(": "))[:LINE]


def _ceilings(row: Row) -> tuple[str, ...]:
    """The machine's ceilings in each type that a contender computes in."""
    dtypes = dict.fromkeys(Contender.read(name, row).dtype for name in row.contenders)
    return tuple(f"{kind} {dtype}" for dtype in dtypes for kind in CEILINGS)


def _described(name: str, row: Row, ready: Ready, seconds: float) -> Outcome:
    """What is known before any time is."""
    if isinstance(ready.module, Ceiling):
        return Outcome(name, prepared=seconds, work=ready.module.work, dtype=name.split()[-1])
    contender = Contender.read(name, row)
    counts = _counts(row.model, contender.size)
    passes = BACKWARD if row.mode == "training" else 1
    element = DTYPES[contender.dtype].itemsize
    return Outcome(
        name,
        prepared=seconds,
        difference=ready.difference,
        work=2.0 * passes * counts.macs * row.batch,
        traffic=2.0 * passes * counts.activations * row.batch * element,
        dtype=contender.dtype,
        pixels=contender.size**2,
    )


def _counts(model: str, size: int) -> Counts:
    """Arithmetic of our network, which is that of every other form of it."""
    with torch.device("meta"):
        return count(build("ours", model, size), (size, size))


def _timed(
    row: Row, ready: dict[str, Ready], outcomes: Mapping[str, Outcome], rounds: int, tell: Tell
) -> Iterator[tuple[str, Outcome]]:
    if not ready:
        return
    training = row.mode == "training"
    timings = measure(
        [each.module for each in ready.values()],
        [each.images for each in ready.values()],
        rounds=rounds,
        warmup=2,
        gradients=training,
        after_round=lambda turn: tell({"round": turn + 1, "of": rounds}),
    )
    for (name, each), timing in zip(ready.items(), timings, strict=True):
        with torch.inference_mode(not training):
            memory = None if isinstance(each.module, Ceiling) else peak(each.module, each.images)
        yield name, replace(outcomes[name], timing=timing, memory=memory or None)


def _profiled(
    row: Row, ready: Mapping[str, Ready], outcomes: Mapping[str, Outcome]
) -> Iterator[tuple[str, Outcome]]:
    if row.device != "cpu":
        return
    for name in _best(row, outcomes):
        generated = not set(COMPILERS).isdisjoint(Contender.read(name, row).forms)
        with torch.inference_mode(row.mode != "training"):
            found = profile(ready[name].module, ready[name].images, generated)
        yield name, replace(outcomes[name], profile=found)


def _best(row: Row, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Whose quickest round the claims compare, once each."""
    quickest = {name: o.timing.minimum for name, o in outcomes.items() if o.timing is not None}
    sides = ([name for name in claim.ours if name in quickest] for claim in row.claims)
    return list(dict.fromkeys(min(names, key=quickest.__getitem__) for names in sides if names))
