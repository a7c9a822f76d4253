"""What is measured together, and what is claimed of it: data, without a line of how."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["speed", "memory", "pixels"]
Device = Literal["cpu", "cuda"]
Mode = Literal["inference", "training"]


@dataclass(frozen=True)
class Claim:
    """One comparison: the best of our contenders with the best of theirs."""

    title: str
    ours: tuple[str, ...]
    """Contenders, as `contender.Contender.read` takes them."""
    theirs: tuple[str, ...]
    target: float | None = None
    """Ratio to reach; None for a comparison that is only told."""
    kind: Kind = "speed"
    """`speed`: their time by ours, at least the target. `memory`: our peak by theirs, at most the target.
    `pixels`: our time per pixel by theirs, at most the target."""

    @property
    def at_most(self) -> bool:
        """Whether less is better."""
        return self.kind != "speed"

    @property
    def goal(self) -> str:
        """The target, to read."""
        if self.target is None:
            return "–"
        return f"{'≤' if self.at_most else '≥'} {self.target:g} ×"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Contenders that are measured in turn, in one process of their own."""

    model: str
    device: Device
    mode: Mode = "inference"
    dtype: str = "fp32"
    batch: int = 8
    size: int = 224
    subject: str = ""
    """What the name says beside the conditions."""
    claims: tuple[Claim, ...]

    @property
    def name(self) -> str:
        """Device, model, mode, type and batch, as `--rows` filters them."""
        words = (self.device, self.model, self.mode, self.dtype, f"b{self.batch}", self.subject)
        return "-".join(word for word in words if word)

    @property
    def contenders(self) -> tuple[str, ...]:
        """All that the claims name, once each."""
        names = (name for claim in self.claims for name in (*claim.ours, *claim.theirs))
        return tuple(dict.fromkeys(names))
