"""Recipe: the configuration of a run, with its cost and published result."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from metaformer.config import TrainConfig

IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet-1K."""
PUBLISHED_ON = ("imagenet", "ade20k", "coco")
"""Name prefixes of recipes whose runs take several devices."""
AP_NAMES = ("AP", "AP50", "AP75", "small", "medium", "large")


@dataclass(frozen=True)
class Recipe:
    """A named TrainConfig, which calling it returns; its docstring has cost, published result and command."""

    name: str
    """Name on the command line."""
    config: TrainConfig
    summary: str
    """One line: model and data."""
    top1: float | None = None
    """Published ImageNet-1K top-1 in per cent."""
    gmacs: float | None = None
    """Published multiply-adds of one forward pass, in 10^9."""
    notes: tuple[str, ...] = ()
    """Where sources disagree or are silent, and what this recipe does."""
    command: str = field(default="")
    """Further arguments of the command."""
    miou: float | None = None
    """Published single-scale mean IoU in per cent, of whole images."""
    box_ap: tuple[float, ...] | None = None
    """Published box AP on COCO's val2017 in per cent: AP, AP50, AP75, then small, medium and large."""
    mask_ap: tuple[float, ...] | None = None
    """The same for masks."""
    fits_data: bool = False
    """Whether sizes and batch are made to fit the data before the run, see `TaskSpec.fit_data`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", "\n".join(self._lines()))

    def __call__(self) -> TrainConfig:
        return self.config

    @property
    def epochs(self) -> int:
        """Passes over the data, cool-down included."""
        return self.config.schedule.epochs + self.config.schedule.cooldown_epochs

    @property
    def exaflops(self) -> float | None:
        """Compute of the run in 10^18 FLOP; a backward pass counts as two forward passes."""
        if self.gmacs is None:
            return None
        return self.epochs * IMAGENET_IMAGES * 3 * 2 * self.gmacs / 1e9

    def _lines(self) -> Iterable[str]:
        yield f"{self.summary}."
        yield ""
        if self.config.schedule.steps is not None:
            data, side = self.config.data, self.config.data.image_size
            yield f"Cost: {self.config.schedule.steps:,} steps of {data.batch_size} crops of {side}×{side}."
        elif self.exaflops is not None:
            yield f"Cost: {self.epochs} epochs, about {self.exaflops:.2g} exaFLOP forward and backward."
        else:
            yield f"Cost: {self.epochs} epochs."
        if self.top1 is not None:
            yield f"Published: top-1 {self.top1} % on ImageNet-1K."
        if self.miou is not None:
            yield f"Published: mIoU {self.miou} %."
        for what, figures in (("box", self.box_ap), ("mask", self.mask_ap)):
            if figures is not None:
                named = ", ".join(f"{name} {value}" for name, value in zip(AP_NAMES, figures, strict=False))
                yield f"Published: {what} {named}, in per cent."
        yield f"Command: {self.full_command}"
        yield from (f"Note: {note}" for note in self.notes)

    @property
    def full_command(self) -> str:
        """The command to type."""
        many = self.name.split("/")[0] in PUBLISHED_ON
        launcher = "torchrun --nproc-per-node 8 -m metaformer" if many else "metaformer"
        run = f"runs/{self.name.split('/')[-1]}"
        return f"{launcher} train {self.name} --data.root DIR --out {run} {self.command}".strip()
