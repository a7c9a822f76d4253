"""Heat maps: where in an image a network of any task sees what it says."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from metaformer.attribution.cam import grad_cam
from metaformer.attribution.stages import stage_of, trunk_of
from metaformer.errors import ConfigError, MissingPackage, TrainingError
from metaformer.report.blocks import data_uri
from metaformer.tasks.base import LoadedModel, TaskExplain
from metaformer.tasks.heat import Claim, Heat
from metaformer.visualize.canvas import Box
from metaformer.visualize.heat import heat_tile

ERRORS: Final = 12
"""Images of a report that have maps."""
CLAIMS: Final = 3
"""Maps of each of them, at most."""
NOTE: Final = "Beside errors, class activation maps (Grad-CAM): what speaks for a class, right or wrong."


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


class ErrorMaps:
    """Class activation maps of an evaluation's errors, for its report; of the first `ERRORS` of them.

    Args:
        load: gives the network of the checkpoint, where it is needed.
        explain: of its task.
        classes: their names.
    """

    def __init__(self, load: Callable[[], LoadedModel], explain: TaskExplain, classes: Sequence[str]) -> None:
        self._load, self._explain, self._classes = load, explain, classes
        self._model: LoadedModel | None = None
        self._left = ERRORS
        self.note = ""
        """What the maps are, or why there are none."""

    def __call__(self, example: Mapping[str, Any], image: Image.Image) -> dict[str, str]:
        """Maps of an example as data URI, by what the network says and what is true; empty where it is right.

        Args:
            example: of the evaluation.
            image: RGB.
        """
        claims = self._explain.claims(example, self._classes) if self._left else ()
        panels: dict[str, str] = {}
        try:
            for claim in claims[:CLAIMS]:
                number = f" ({len(panels) + 1})" if claim.caption in panels else ""
                # evaluated in other views, such as windows, the network may have found what it does not here
                with suppress(ConfigError):
                    panels[claim.caption + number] = data_uri(self._draw(image, claim))
        except MissingPackage as error:
            self.note, self._left = str(error), 0
            return {}
        if panels:
            self.note, self._left = NOTE, self._left - 1
        return panels

    def _draw(self, image: Image.Image, claim: Claim) -> Image.Image:
        if self._model is None:
            self._model = self._load()
        return heat_tile(image, heat_map(self._model, image, claim.index, claim.box, None), claim.box)
