"""What is explained of a multi-label classifier: the logit of a class."""

from torch import Tensor

from metaformer.tasks.classification.explain import ClassifierExplain


class MultilabelExplain(ClassifierExplain):
    """The logit of a class, each with a probability of its own."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (K,) of logits (K,)."""
        return logits.sigmoid()
