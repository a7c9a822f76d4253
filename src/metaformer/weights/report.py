"""Report of loading a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Shape = tuple[int, ...]
SHOWN = 10


@dataclass
class LoadReport:
    """Tensors of a checkpoint that were loaded into a model, and those that were not."""

    format: str = ""
    """The checkpoint's format, a key of `metaformer.weights.formats.FORMATS`."""
    source: str = ""
    """The file, or `state dict`."""
    loaded: list[str] = field(default_factory=list)
    """The model's tensors that were filled from the checkpoint."""
    missing: list[str] = field(default_factory=list)
    """The model's tensors that the checkpoint lacks; they stay as they were."""
    unexpected: list[str] = field(default_factory=list)
    """The checkpoint's tensors, by its names, that the model lacks."""
    misshaped: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    """Name in the model, shape in the checkpoint, shape in the model; these stay as they were."""
    fresh: list[str] = field(default_factory=list)
    """The model's tensors that were to stay as initialized: a new classifier, fresh pyramid norms."""
    dropped: list[str] = field(default_factory=list)
    """The checkpoint's tensors that were dropped on purpose: a replaced classifier, a head, fixed offsets."""
    adapted: list[str] = field(default_factory=list)
    """Descriptions of what was changed."""
    fraction: float = 0.0
    """Share of the model's values that came from the checkpoint."""

    @property
    def complete(self) -> bool:
        """Whether checkpoint and model matched, apart from what was asked for."""
        return not (self.missing or self.unexpected or self.misshaped)

    def problems(self) -> list[str]:
        """One line for each kind of mismatch, with up to ten names and the total."""
        shapes = [
            f"{name} {_shape(theirs)} in the file, {_shape(ours)} here"
            for name, theirs, ours in self.misshaped
        ]
        kinds = (
            ("missing in the file", self.missing),
            ("unknown to the model", self.unexpected),
            ("misshaped", shapes),
        )
        return [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]

    def __str__(self) -> str:
        share = f"{len(self.loaded)} tensors, {self.fraction:.1%} of the model"
        notes = [
            f"{len(n)} {what}: {_some(n)}"
            for what, n in (("fresh", self.fresh), ("left out", self.dropped))
            if n
        ]
        return "\n  ".join(
            [f"{self.source}: {self.format} format, {share}", *self.adapted, *notes, *self.problems()]
        )


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a number"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
