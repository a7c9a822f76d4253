"""What was found out about contenders and rows; goes to JSON and comes back from there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.suite.ceilings import COPY, PRODUCTS
from benchmarks.suite.profile import Profile
from benchmarks.suite.row import Row
from metaformer.bench.timing import Machine, Timing


@dataclass(frozen=True)
class Outcome:
    """One contender: its times, or why there are none."""

    name: str
    timing: Timing | None = None
    failure: str = ""
    """One line; empty where all went well."""
    prepared: float | None = None
    """Seconds to build and compile it."""
    difference: float | None = None
    """Largest difference of its logits from the plain network's, by the largest of these."""
    memory: int | None = None
    """Most bytes that a run held at once, beside weights and images; None where that cannot be seen."""
    work: float | None = None
    """Floating-point operations of a run; of a copy, bytes read and written."""
    traffic: float | None = None
    """Bytes of what convolutions and products put out, written once and read once."""
    dtype: str = "fp32"
    pixels: int = 0
    """Pixels of one image."""
    profile: Profile | None = None
    """How its time divides; None for who is not the best of ours, and on CUDA."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Outcome":
        """Undo `asdict`."""
        timing, profile = values["timing"], values.get("profile")
        if timing is not None:
            timing = Timing(**{**timing, "seconds": tuple(timing["seconds"])})
        return cls(**{**values, "timing": timing, "profile": Profile(**profile) if profile else None})


@dataclass(frozen=True)
class RowResult:
    """All contenders of a row."""

    row: Row
    outcomes: tuple[Outcome, ...]
    machine: Machine | None = None
    failure: str = ""
    """Why there is nothing, in one line."""

    def __getitem__(self, name: str) -> Outcome:
        """Find a contender; one that was never reached has failed with the row."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        return Outcome(name, failure=self.failure or "not measured")

    def gemm_share(self, outcome: Outcome) -> float | None:
        """Part of the machine's best product rate that a contender reached in its quickest round."""
        best = max((_rate(self[f"{name} {outcome.dtype}"]) for name in PRODUCTS), default=0.0)
        return _rate(outcome) / best if best and outcome.timing and outcome.work else None

    def copy_share(self, outcome: Outcome) -> float | None:
        """The same of its copy rate, if products' results were written and read once and nothing else."""
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
