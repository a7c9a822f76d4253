"""Whether a claim holds, by both ways of taking the ratio."""

from dataclasses import asdict, dataclass, replace
from statistics import median, quantiles
from typing import Any

from benchmarks.suite.outcome import Outcome, RowResult
from benchmarks.suite.row import Claim
from metaformer.bench.timing import ratios


@dataclass(frozen=True)
class Verdict:
    """A claim beside what was measured."""

    row: str
    claim: Claim
    minima: float | None = None
    """Ratio of the quickest rounds of each side's best."""
    pairs: tuple[float, ...] = ()
    """Ratio of each side's best in the middle, round by round."""
    ours: str = ""
    """The contender whose quickest round is our quickest."""
    theirs: str = ""
    paired: tuple[str, ...] = ()
    """The two contenders, ours first, whose ratios `pairs` holds: each side's best by median."""
    missing: tuple[str, ...] = ()
    """Contenders that could not be measured."""

    @property
    def median(self) -> float | None:
        """Median of the pairs' ratios."""
        return median(self.pairs) if self.pairs else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Between which half of the pairs' ratios are."""
        if len(self.pairs) < 2:
            return None
        low, _, high = quantiles(self.pairs, n=4, method="inclusive")
        return low, high

    @property
    def word(self) -> str:
        """What is said of it in a word or two; a contender left out is always told."""
        if self.minima is None or self.median is None:
            return "not compared" if self.claim.theirs else "told only"
        without = f", without {', '.join(self.missing)}" if self.missing else ""
        if self.claim.target is None:
            return f"told only{without}"
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
            "verdict": self.word,
        }

    def _holds(self, ratio: float) -> bool:
        target = self.claim.target
        assert target is not None
        return ratio <= target if self.claim.at_most else ratio >= target


def judge(claim: Claim, result: RowResult) -> Verdict:
    """Compare the best of each side."""
    ours, theirs = ([result[name] for name in names] for names in (claim.ours, claim.theirs))
    missing = tuple(dict.fromkeys(outcome.name for outcome in (*ours, *theirs) if outcome.timing is None))
    ours, theirs = ([o for o in side if o.timing is not None] for side in (ours, theirs))
    found = Verdict(result.row.name, claim, missing=missing)
    if not ours or not theirs:
        return found
    if claim.kind == "memory":
        return _by_memory(found, ours, theirs)
    return _by_time(found, ours, theirs)


def _by_time(found: Verdict, ours: list[Outcome], theirs: list[Outcome]) -> Verdict:
    mine, other = min(ours, key=_minimum), min(theirs, key=_minimum)
    usual, usual_other = min(ours, key=_median), min(theirs, key=_median)
    assert usual.timing is not None and usual_other.timing is not None
    factor = other.pixels / mine.pixels if found.claim.kind == "pixels" else 1.0
    minima, pairs = _minimum(other) / _minimum(mine), ratios(usual.timing, usual_other.timing)
    if found.claim.at_most:  # ours by theirs, and per pixel
        minima, pairs = factor / minima, tuple(factor / pair for pair in pairs)
    paired = (usual.name, usual_other.name)
    return replace(found, minima=minima, pairs=pairs, ours=mine.name, theirs=other.name, paired=paired)


def _by_memory(found: Verdict, ours: list[Outcome], theirs: list[Outcome]) -> Verdict:
    """Of ours the quickest has to be frugal too; of theirs the most frugal counts."""
    mine = min(ours, key=_minimum)
    others = [outcome for outcome in theirs if outcome.memory]
    if not mine.memory or not others:
        return found
    other = min(others, key=lambda outcome: outcome.memory or 0)
    ratio = mine.memory / (other.memory or 1)
    paired = (mine.name, other.name)
    return replace(found, minima=ratio, pairs=(ratio,), ours=mine.name, theirs=other.name, paired=paired)


def _minimum(outcome: Outcome) -> float:
    assert outcome.timing is not None
    return outcome.timing.minimum


def _median(outcome: Outcome) -> float:
    assert outcome.timing is not None
    return outcome.timing.median
