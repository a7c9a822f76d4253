"""What is explained of a segmenter: the summed logits of a class's pixels, or of a region."""

import base64
import io
from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metaformer.attribution.cam import Score
from metaformer.errors import ConfigError
from metaformer.tasks.base import LoadedModel, TaskExplain
from metaformer.tasks.heat import Claim, Input, Subject
from metaformer.visualize.canvas import Box


class SegmenterExplain(TaskExplain):
    """The logits of a class, summed over the pixels that the network gives it, or over a box."""

    has_places = True

    def find(
        self, model: LoadedModel, image: Image.Image, count: int, box: Box | None = None
    ) -> Sequence[Subject]:
        given = self.input(model, image)
        with torch.inference_mode():
            labels = model.forward(given.images)[0].float().argmax(0)
        labels = labels[None] if box is None else labels[None][_inside(given.scaled(box), given, labels)]
        pixels = torch.bincount(labels.flatten(), minlength=model.num_classes)
        shares = (pixels / max(1, labels.numel())).tolist()
        present = [index for index in range(model.num_classes) if shares[index]]
        # what drawings leave out, such as the background, comes last
        order = sorted(present, key=lambda index: (not any(model.metadata[index]), -shares[index]))
        return [Subject(index, model.class_names[index], shares[index], box) for index in order[:count]]

    def score(self, model: LoadedModel, given: Input, index: int, box: Box | None = None) -> Score:
        def score(x: Tensor) -> Tensor:
            logits = model.forward(x).float()  # (B, K, h, w), coarser than x
            where = logits.argmax(1) == index if box is None else _inside(box, given, logits)
            if not where.any():
                name, place = model.class_names[index], "the image" if box is None else f"the box {box}"
                raise ConfigError(f"class {name!r}: the network gives it no pixel of {place}")
            return (logits[:, index] * where).sum((1, 2))

        return score

    def claims(self, example: Mapping[str, Any], classes: Sequence[str]) -> Sequence[Claim]:
        """The class that most wrong pixels are given, and the one that most of these are of."""
        truth, predicted = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(example[key]))))
            for key in ("truth", "predicted")
        )
        wrong = (predicted != truth) & (truth < len(classes))
        if not wrong.any():
            return []
        said = int(np.bincount(predicted[wrong]).argmax())
        there = int(np.bincount(truth[wrong & (predicted == said)]).argmax())
        return [Claim(f"says {classes[said]}", said), Claim(f"is {classes[there]}", there)]


def _inside(box: Box, given: Input, logits: Tensor) -> Tensor:
    """Which cells (1, h, w) of the logits (…, h, w) a box of the input touches."""
    across, down = (given.images.shape[axis] / logits.shape[axis] for axis in (-1, -2))
    left, top, right, bottom = box
    where = torch.zeros(1, *logits.shape[-2:], dtype=torch.bool, device=logits.device)
    where[
        :, max(0, floor(top / down)) : max(0, ceil(bottom / down)),
        max(0, floor(left / across)) : max(0, ceil(right / across)),
    ] = True  # fmt: skip
    return where
