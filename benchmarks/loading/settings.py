"""What loaders have to do, and under which conditions they are measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metaformer.errors import ConfigError, UnknownName
from metaformer.process import cores

if TYPE_CHECKING:
    from metaformer.config import TrainConfig

PIPELINES: Final = {
    "train": "the ImageNet recipes' augmentation: random crop, flip, RandAugment, erasing",
    "plain": "random crop and flip alone, the same work in each library",
    "evaluation": "resize, center crop",
}
"""What is done to images before they are normalized."""


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """Under which conditions loaders and a model are measured."""

    root: Path | None = None
    """Folder with images in it or below; made images of ImageNet's size when not given."""
    images: int = 512
    """How many are read in a round, cut to whole batches; of more, some at even distances are taken."""
    pipelines: tuple[str, ...] = tuple(PIPELINES)
    """Which of `PIPELINES` are measured."""
    batch: int = 64
    """Images in a batch."""
    size: int = 224
    """Height and width that they are given."""
    workers: int | None = None
    """Processes that make them; one for each core when not given, 0 for none beside the main one."""
    rounds: int = 10
    """Measurements of each loader."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`: where batches go, and the model is."""
    model: str = "poolformer_s12"
    """Whose training step is measured."""
    model_speed: float | None = None
    """Images per second that a model trains on, instead of measuring one."""
    step_batch: int | None = None
    """Images of a training step; 8 on a CPU and `batch` elsewhere when not given."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "size", "rounds", "step_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")
        if self.workers is not None and not 0 <= self.workers <= cores():
            raise ConfigError(f"workers: {self.workers} must lie between 0 and {cores()}, the cores here")
        if self.model_speed is not None and not self.model_speed > 0:
            raise ConfigError(f"model_speed: {self.model_speed} must be above 0")
        for pipeline in self.pipelines:
            if pipeline not in PIPELINES:
                raise UnknownName("pipeline", pipeline, PIPELINES)
        if self.images < self.batch:
            raise ConfigError(f"images: {self.images} do not fill one batch of {self.batch}")

    @property
    def processes(self) -> int:
        """Workers, the number made up where it is not given."""
        return cores() if self.workers is None else self.workers


def training(pipeline: str, size: int) -> "TrainConfig":
    """The configuration whose augmentation a pipeline is."""
    from metaformer.config import AugmentConfig, DataConfig, TrainConfig

    bare = AugmentConfig(auto_augment=None, color_jitter=0.0, erase=0.0, interpolation="bilinear")
    augment = bare if pipeline == "plain" else AugmentConfig()
    return TrainConfig(data=DataConfig(image_size=size), augment=augment)
