"""What is explained of a classifier: the logit of a class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metaformer.attribution.cam import Score
from metaformer.errors import ConfigError
from metaformer.tasks.base import LoadedModel, TaskExplain
from metaformer.tasks.heat import Claim, Input, Subject
from metaformer.visualize.canvas import Box


class ClassifierExplain(TaskExplain):
    """The logit of a class."""

    def find(
        self, model: LoadedModel, image: Image.Image, count: int, box: Box | None = None
    ) -> Sequence[Subject]:
        _refuse(model, box)
        with torch.inference_mode():
            logits = model.forward(self.input(model, image).images)[0].float()
        best, indices = self.probabilities(logits).topk(min(count, len(logits)))
        pairs = zip(indices.tolist(), best.tolist(), strict=True)
        return [Subject(index, model.class_names[index], score) for index, score in pairs]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (K,) of logits (K,)."""
        return logits.softmax(0)

    def score(self, model: LoadedModel, given: Input, index: int, box: Box | None = None) -> Score:
        _refuse(model, box)
        return lambda x: model.forward(x)[:, index].float()

    def claims(self, example: Mapping[str, Any], classes: Sequence[str]) -> Sequence[Claim]:
        names = {"says": example["predicted"], "is": example["label"]}
        if names["says"] == names["is"]:
            return []
        return [Claim(f"{verb} {name}", classes.index(name)) for verb, name in names.items()]


def _refuse(model: LoadedModel, box: Box | None) -> None:
    if box is not None:
        raise ConfigError(f"box: no option of {model.spec.title}, whose classes are of whole images")
