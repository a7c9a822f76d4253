"""What is explained of a multi-label classifier: the logit of a class."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from metaformer.tasks.classification.explain import ClassifierExplain
from metaformer.tasks.heat import Claim


class MultilabelExplain(ClassifierExplain):
    """The logit of a class, each with a probability of its own."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (K,) of logits (K,)."""
        return logits.sigmoid()

    def claims(self, example: Mapping[str, Any], classes: Sequence[str]) -> Sequence[Claim]:
        labels, predicted = set(example["labels"]), set(example["predicted"])
        return [
            Claim(f"{verb} {name}", classes.index(name))
            for verb, names in (("wrongly", predicted - labels), ("missed", labels - predicted))
            for name in sorted(names, key=classes.index)
        ]
