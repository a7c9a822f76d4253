"""Heat maps: where in an image a network of any task sees what it says."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from metaformer.attribution.cam import grad_cam
from metaformer.attribution.stages import stage_of, trunk_of
from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, MissingPackage, TrainingError
from metaformer.report.blocks import Example, Examples, Note, Section, data_uri
from metaformer.tasks.base import LoadedModel, TaskExplain
from metaformer.tasks.heat import Box, Claim, Heat, Mistake
from metaformer.visualize.heat import heat_tile
from metaformer.visualize.sheet import fit

MISTAKES: Final = 6
"""Images of the gallery, at most."""
CLAIMS: Final = 3
"""Maps of each of them, at most."""


def heat_map(
    model: LoadedModel, image: Image.Image, index: int, box: Box | None = None, stage: int | None = -1
) -> Heat:
    """Where an RGB image speaks for a class: (H, W) at its size, 1 at the strongest place.

    An image of one color has no place that speaks more than another: its map is 0.

    Args:
        model: the network.
        image: the image.
        index: the class.
        box: in the image's pixels; None for the whole.
        stage: whose features are weighed, from 0; −1 for the last, None for the last with a map other than 0.

    Raises:
        ConfigError: no such class or stage, or a class that is not in the image.
        MissingPackage: captum is not there.
        TrainingError: values that are not finite.
    """
    if stage is None:
        return deepest_map(model, image, index, box)[0]
    if not 0 <= index < model.num_classes:
        raise ConfigError(f"class {index}: {model.name} has classes 0 … {model.num_classes - 1}")
    layer = stage_of(model.model, stage)
    task = model.spec.explain
    given = task.input(model, image)
    score = task.score(model, given, index, None if box is None else given.scaled(box))
    cam = grad_cam(score, layer, given.images, task.has_places)[0]
    if not cam.isfinite().all():
        raise TrainingError(f"{model.name}: gradients are not finite: its weights may be damaged")
    if given.is_flat:
        cam = torch.zeros_like(cam)  # what is left is the padding's
    heat = given.placed(cam)
    return heat / max(heat.max(), np.finfo(np.float32).tiny)


def deepest_map(
    model: LoadedModel, image: Image.Image, index: int, box: Box | None = None
) -> tuple[Heat, int]:
    """The map of the last stage where it is not 0 everywhere, and that stage; arguments of `heat_map`.

    Small objects of a detector are found by the features of early stages; those of the last may say nothing.
    """
    last = len(trunk_of(model.model).stages) - 1
    for stage in range(last, 0, -1):
        heat = heat_map(model, image, index, box, stage)
        if heat.any():
            return heat, stage
    return heat_map(model, image, index, box, 0), 0


def mistakes_section(
    load: Callable[[], LoadedModel], explain: TaskExplain, state: Mapping[str, Any], config: TrainConfig
) -> Section | None:
    """The worst mistakes of an evaluation with their maps; None where there are none, or no images.

    Without captum it is a line that says how to get it.

    Args:
        load: gives the network of the checkpoint, where it is needed.
        explain: of its task.
        state: the checkpoint's, with the evaluation.
        config: the run's configuration.
    """
    mistakes = list(islice(explain.mistakes(state, config), MISTAKES))
    if not mistakes:
        return None
    title = "Worst mistakes, and what the network looked at"
    try:
        model = load()
        examples = [_example(model, one) for one in mistakes]
    except MissingPackage as error:
        return Section(title, [Note(str(error))])
    note = "Class activation maps (Grad-CAM): what speaks for a class, right or wrong."
    return Section(title, [Examples("", examples)], note=note)


def _example(model: LoadedModel, mistake: Mistake) -> Example:
    panels = {"image": data_uri(fit(mistake.image))}
    for claim in mistake.claims[:CLAIMS]:
        caption = claim.caption if claim.caption not in panels else f"{claim.caption} ({len(panels)})"
        # evaluated in other views, such as windows, the network may have found what it does not find here
        with suppress(ConfigError):
            panels[caption] = data_uri(_drawn(model, mistake.image, claim))
    return Example(panels, value=mistake.text, note=mistake.path, correct=False)


def _drawn(model: LoadedModel, image: Image.Image, claim: Claim) -> Image.Image:
    heat = heat_map(model, image, claim.index, claim.box, None)
    return heat_tile(image, heat, claim.box)
