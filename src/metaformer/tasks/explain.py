"""Heat maps: where in an image a network of any task sees what it says."""

import numpy as np
import torch
from PIL import Image

from metaformer.attribution.cam import grad_cam
from metaformer.attribution.stages import stage_of
from metaformer.errors import ConfigError, TrainingError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.heat import Box, Heat


def heat_map(
    model: LoadedModel, image: Image.Image, index: int, box: Box | None = None, stage: int = -1
) -> Heat:
    """Where an RGB image speaks for a class: (H, W) at its size, 1 at the strongest place.

    An image of one color has no place that speaks more than another: its map is 0.

    Args:
        model: the network.
        image: the image.
        index: the class.
        box: in the image's pixels; None for the whole.
        stage: whose features are weighed, from 0; −1 for the last.

    Raises:
        ConfigError: no such class or stage, or a class that is not in the image.
        MissingPackage: captum is not there.
        TrainingError: values that are not finite.
    """
    if not 0 <= index < model.num_classes:
        raise ConfigError(f"class {index}: {model.name} has classes 0 … {model.num_classes - 1}")
    layer = stage_of(model.model, stage)
    task = model.spec.explain
    given = task.input(model, image)
    score = task.score(model, given, index, None if box is None else given.scaled(box))
    cam = grad_cam(score, layer, given.images)[0]
    if not cam.isfinite().all():
        raise TrainingError(f"{model.name}: gradients are not finite: its weights may be damaged")
    if given.is_flat:
        cam = torch.zeros_like(cam)  # what is left is the padding's
    heat = given.placed(cam)
    return heat / max(heat.max(), np.finfo(np.float32).tiny)
