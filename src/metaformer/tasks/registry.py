"""From a configuration to the task that it describes."""

from collections.abc import Callable

from metaformer.config import TrainConfig
from metaformer.data.loader import Stop
from metaformer.distributed import World
from metaformer.tasks.classification.task import Classify, build_classify
from metaformer.tasks.detection.task import Detect, build_detect
from metaformer.tasks.segmentation.task import Segment, build_segment

AnyTask = Classify | Segment | Detect
Build = Callable[[TrainConfig, World, Stop | None], AnyTask]

BUILDERS: dict[str, Build] = {"classify": build_classify, "segment": build_segment, "detect": build_detect}
"""What `task` stands for."""


def build_task(config: TrainConfig, world: World, stop: Stop | None = None) -> AnyTask:
    """Open the data and make model, loss and evaluation, all on the run's device; `stop` cuts evaluations.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be.
        WeightsError: a checkpoint does not fit.
    """
    return BUILDERS[config.task](config, world, stop)
