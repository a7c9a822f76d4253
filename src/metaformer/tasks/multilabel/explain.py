"""What is explained of a multi-label classifier: the logit of a class."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.errors import MetaFormerError
from metaformer.tasks.classification.explain import ClassifierExplain
from metaformer.tasks.heat import Claim, Mistake


class MultilabelExplain(ClassifierExplain):
    """The logit of a class, each with a probability of its own."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (K,) of logits (K,)."""
        return logits.sigmoid()

    def mistakes(self, state: Mapping[str, Any], config: TrainConfig) -> Iterator[Mistake]:
        classes: list[str] = state["card"]["classes"]
        for one in state["evaluation"]["examples"]:
            there, said = set(one["labels"]), set(one["predicted"])
            claims = [
                Claim(f"{verb} {name}", classes.index(name))
                for verb, names in (("wrongly", said - there), ("missed", there - said))
                for name in sorted(names, key=classes.index)
            ]
            if not claims:
                continue
            with suppress(MetaFormerError):  # gone since the evaluation
                image = read_image(one["path"], background=config.data.background_color)
                yield Mistake(image, one["path"], ", ".join(claim.caption for claim in claims), claims)
