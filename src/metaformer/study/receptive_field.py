"""Effective receptive fields of a study's trained networks."""

from typing import Any, Final

from torchvision.transforms.v2 import functional as image_ops

from metaformer.attribution.receptive_field import ReceptiveField, receptive_field
from metaformer.config import TrainConfig
from metaformer.distributed import World
from metaformer.inference.receptive_field import ENLARGED
from metaformer.study.plan import DataPlan
from metaformer.study.predict import sample_test_images
from metaformer.tasks.base import Task

IMAGES: Final = 10
"""Test images over which a field is averaged."""


def measure_field(task: Task, config: TrainConfig, data: DataPlan, world: World) -> ReceptiveField:
    """Effective receptive field on a few test images, enlarged where the network takes another size.

    Args:
        task: with the trained network.
        config: of its run.
        data: of the study.
        world: its device.
    """
    network: Any = task.model
    side = config.data.image_size * (1 if network.config.fixed_size else ENLARGED)
    images = (
        image_ops.resize(image, [side, side], antialias=True).to(world.device)
        for batch in sample_test_images(task, config, data, world, IMAGES)
        for image in batch.images.split(1)
    )
    return receptive_field(network.forward_features, images)
