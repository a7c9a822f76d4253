"""Measurement of a row: its contenders prepared one by one, then timed in alternating rounds."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.suite.ceilings import CEILINGS, Ceiling
from benchmarks.suite.contender import COMPILERS, Contender, Ready, build, prepare
from benchmarks.suite.dense import is_dense
from benchmarks.suite.profile import peak_memory, profile
from benchmarks.suite.result import Outcome, RowResult
from benchmarks.suite.rows import Row
from metaformer.bench.counts import Counts, count
from metaformer.bench.run import DTYPES
from metaformer.bench.timing import Machine, measure

Report = Callable[[Mapping[str, Any]], object]
BACKWARD = 3
"""A training step's arithmetic relative to the forward pass: the two gradients cost as much each."""
MAX_LINE = 300
"""Characters of a failure that are reported."""


def measure_row(
    row: Row,
    rounds: int,
    *,
    skip: Mapping[str, str] | None = None,
    ceilings: bool = True,
    report: Report = lambda event: None,
) -> RowResult:
    """Prepare and time a row's contenders in this process; one that fails is left out.

    The fastest of our contenders in each claim is profiled at the end.

    Args:
        row: the row.
        rounds: measurements of each contender.
        skip: contenders to leave out, with the reason.
        ceilings: measure the machine's ceilings in the same rounds.
        report: called with each event: `preparing`, `prepared`, `failed`, `round`.
    """
    skip = skip or {}
    ready: dict[str, Ready] = {}
    outcomes: dict[str, Outcome] = {}
    for name in (*row.contenders, *(_ceilings(row) if ceilings else ())):
        if name in skip:
            outcomes[name] = Outcome(name, failure=skip[name])
            continue
        report({"preparing": name})
        start = time.perf_counter()
        try:
            ready[name] = prepare(name, row)
        except Exception as error:  # whatever compilers and other libraries raise
            outcomes[name] = Outcome(name, failure=one_line(error))
            report({"failed": name, "reason": outcomes[name].failure})
            continue
        seconds = time.perf_counter() - start
        outcomes[name] = _describe(name, row, ready[name], seconds)
        report({"prepared": name, "seconds": round(seconds, 1)})
    outcomes.update(_timed(row, ready, outcomes, rounds, report))
    outcomes.update(_profiled(row, ready, outcomes))
    return RowResult(row, tuple(outcomes.values()), Machine.here(torch.device(row.device)))


def one_line(error: BaseException) -> str:
    """An error's class and the beginning of its message."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return (text if kind == "ConfigError" else f"{kind}: {text}".removesuffix(": "))[:MAX_LINE]


def _ceilings(row: Row) -> tuple[str, ...]:
    """The machine's ceilings in each type that a contender computes in."""
    dtypes = dict.fromkeys(Contender.read(name, row).multiplies for name in row.contenders)
    return tuple(f"{kind} {dtype}" for dtype in dtypes for kind in CEILINGS)


def _describe(name: str, row: Row, ready: Ready, seconds: float) -> Outcome:
    """An outcome before the timing."""
    if isinstance(ready.module, Ceiling):
        return Outcome(name, prepared=seconds, work=ready.module.work, dtype=name.split()[-1])
    contender = Contender.read(name, row)
    height, width = contender.image_size(row)
    outcome = Outcome(
        name, prepared=seconds, difference=ready.difference, dtype=contender.multiplies, pixels=height * width
    )
    if is_dense(row.model):  # a detector's second stage cannot be counted, and sides differ
        return outcome
    counts = _counts(row.model, contender.size)
    passes = BACKWARD if row.mode == "training" else 1
    element = DTYPES[contender.multiplies].itemsize
    return replace(
        outcome,
        work=2.0 * passes * counts.macs * row.batch,
        traffic=2.0 * passes * counts.activations * row.batch * element,
    )


def _counts(model: str, size: int) -> Counts:
    """Counts of our network, which hold for its other forms."""
    with torch.device("meta"):
        return count(build("ours", model, size), (size, size))


def _timed(
    row: Row, ready: dict[str, Ready], outcomes: Mapping[str, Outcome], rounds: int, report: Report
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
        after_round=lambda turn: report({"round": turn + 1, "of": rounds}),
    )
    for (name, each), timing in zip(ready.items(), timings, strict=True):
        with torch.inference_mode(not training):
            memory = None if isinstance(each.module, Ceiling) else peak_memory(each.module, each.images)
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
    """Our contenders whose fastest round the claims compare, once each."""
    fastest = {name: o.timing.minimum for name, o in outcomes.items() if o.timing is not None}
    sides = ([name for name in claim.ours if name in fastest] for claim in row.claims)
    return list(dict.fromkeys(min(names, key=fastest.__getitem__) for names in sides if names))
