"""Results: outcomes of contenders, results of rows, verdicts on claims."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median, quantiles
from typing import Any

from benchmarks.suite.ceilings import COPY, PRODUCTS
from benchmarks.suite.profile import Profile
from benchmarks.suite.rows import Claim, Row
from metaformer.bench.timing import Machine, Timing, ratios


@dataclass(frozen=True)
class Outcome:
    """A contender's times, or the reason for having none."""

    name: str
    timing: Timing | None = None
    failure: str = ""
    """One line; empty for success."""
    prepared: float | None = None
    """Seconds to build and compile it."""
    difference: float | None = None
    """Largest difference of its logits from the plain network's, relative to the largest."""
    memory: int | None = None
    """Peak memory in bytes, beside weights and images; None where it is unknown."""
    work: float | None = None
    """Floating-point operations of a run; of a copy, bytes read and written."""
    traffic: float | None = None
    """Bytes of the outputs of convolutions and products, written once and read once."""
    dtype: str = "fp32"
    pixels: int = 0
    """Pixels of one image."""
    profile: Profile | None = None
    """Shares of its time; None for all but our best, and on CUDA."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Outcome":
        """Undo `asdict`."""
        timing, profile = values["timing"], values.get("profile")
        if timing is not None:
            timing = Timing(**{**timing, "seconds": tuple(timing["seconds"])})
        return cls(**{**values, "timing": timing, "profile": Profile.from_dict(profile) if profile else None})


@dataclass(frozen=True)
class RowResult:
    """Outcomes of a row's contenders."""

    row: Row
    outcomes: tuple[Outcome, ...]
    machine: Machine | None = None
    failure: str = ""
    """Reason for having no outcomes, in one line."""

    def __getitem__(self, name: str) -> Outcome:
        """A contender's outcome; one that was not measured has failed."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        return Outcome(name, failure=self.failure or "not measured")

    def gemm_share(self, outcome: Outcome) -> float | None:
        """A contender's rate of multiply-adds in its fastest round, relative to the machine's best."""
        best = max((_rate(self[f"{name} {outcome.dtype}"]) for name in PRODUCTS), default=0.0)
        return _rate(outcome) / best if best and outcome.timing and outcome.work else None

    def copy_share(self, outcome: Outcome) -> float | None:
        """The same of memory traffic, counting the products' outputs alone, written and read once."""
        best = _rate(self[f"{COPY} {outcome.dtype}"])
        if not best or outcome.timing is None or outcome.traffic is None:
            return None
        return outcome.traffic / outcome.timing.minimum / best

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shares = {
            outcome.name: {"gemm_share": self.gemm_share(outcome), "copy_share": self.copy_share(outcome)}
            for outcome in self.outcomes
        }
        return {
            "name": self.row.name,
            "row": asdict(self.row),
            "machine": asdict(self.machine) if self.machine else None,
            "failure": self.failure,
            "contenders": [{**asdict(outcome), **shares[outcome.name]} for outcome in self.outcomes],
        }


def _rate(outcome: Outcome) -> float:
    return outcome.work / outcome.timing.minimum if outcome.timing and outcome.work else 0.0


@dataclass(frozen=True)
class Verdict:
    """A claim with the measured ratios."""

    row: str
    claim: Claim
    minima: float | None = None
    """Ratio of each side's fastest round."""
    pairs: tuple[float, ...] = ()
    """Ratios of each side's best by median, round by round."""
    ours: str = ""
    """Our contender with the fastest round."""
    theirs: str = ""
    paired: tuple[str, ...] = ()
    """The two contenders of `pairs`, ours first."""
    missing: tuple[str, ...] = ()
    """Contenders that could not be measured."""

    @property
    def median(self) -> float | None:
        """Median of the pairs' ratios."""
        return median(self.pairs) if self.pairs else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """First and third quartile of the pairs' ratios."""
        if len(self.pairs) < 2:
            return None
        low, _, high = quantiles(self.pairs, n=4, method="inclusive")
        return low, high

    @property
    def text(self) -> str:
        """The verdict in a word or two, with the contenders that are missing."""
        if self.minima is None or self.median is None:
            return "not compared" if self.claim.theirs else "no target"
        without = f", without {', '.join(self.missing)}" if self.missing else ""
        if self.claim.target is None:
            return f"no target{without}"
        by_minima, by_median = self._holds(self.minima), self._holds(self.median)
        if by_minima and by_median:
            return f"reached{without}"
        if by_minima or by_median:
            return f"by {'minima' if by_minima else 'median'} only{without}"
        return f"missed{without}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "median": self.median,
            "quartiles": self.quartiles,
            "goal": self.claim.goal,
            "verdict": self.text,
        }

    def _holds(self, ratio: float) -> bool:
        target = self.claim.target
        assert target is not None
        return ratio <= target if self.claim.at_most else ratio >= target


def judge(claim: Claim, result: RowResult) -> Verdict:
    """Compare the best contenders of each side."""
    ours, theirs = ([result[name] for name in names] for names in (claim.ours, claim.theirs))
    missing = tuple(dict.fromkeys(outcome.name for outcome in (*ours, *theirs) if outcome.timing is None))
    ours, theirs = ([o for o in side if o.timing is not None] for side in (ours, theirs))
    verdict = Verdict(result.row.name, claim, missing=missing)
    if not ours or not theirs:
        return verdict
    if claim.kind == "memory":
        return _by_memory(verdict, ours, theirs)
    return _by_time(verdict, ours, theirs)


def _by_time(verdict: Verdict, ours: list[Outcome], theirs: list[Outcome]) -> Verdict:
    mine, other = min(ours, key=_minimum), min(theirs, key=_minimum)
    typical, typical_other = min(ours, key=_median), min(theirs, key=_median)
    assert typical.timing is not None and typical_other.timing is not None
    factor = other.pixels / mine.pixels if verdict.claim.kind == "pixels" else 1.0
    minima, pairs = _minimum(other) / _minimum(mine), ratios(typical.timing, typical_other.timing)
    if verdict.claim.at_most:  # our time relative to theirs, per pixel
        minima, pairs = factor / minima, tuple(factor / pair for pair in pairs)
    paired = (typical.name, typical_other.name)
    return replace(verdict, minima=minima, pairs=pairs, ours=mine.name, theirs=other.name, paired=paired)


def _by_memory(verdict: Verdict, ours: list[Outcome], theirs: list[Outcome]) -> Verdict:
    """Compare the memory of our fastest with the least memory of theirs."""
    mine = min(ours, key=_minimum)
    others = [outcome for outcome in theirs if outcome.memory]
    if not mine.memory or not others:
        return verdict
    other = min(others, key=lambda outcome: outcome.memory or 0)
    ratio = mine.memory / (other.memory or 1)
    paired = (mine.name, other.name)
    return replace(verdict, minima=ratio, pairs=(ratio,), ours=mine.name, theirs=other.name, paired=paired)


def _minimum(outcome: Outcome) -> float:
    assert outcome.timing is not None
    return outcome.timing.minimum


def _median(outcome: Outcome) -> float:
    assert outcome.timing is not None
    return outcome.timing.median
