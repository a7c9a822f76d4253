"""Two classifiers on the same images, logit by logit."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from metaformer.tasks.base import Forward
from metaformer.tasks.classification.evaluate import Evaluation
from metaformer.tasks.classification.results import EvalReport


@dataclass(frozen=True)
class Comparison:
    """How a network and its copy do, and how far apart they are."""

    original: EvalReport
    copy: EvalReport
    agreement: float
    """Share of the images on which both find the same class."""
    mean_difference: float
    """Mean distance of their logits."""
    largest_difference: float
    """Largest distance of two logits."""
    largest_logit: float
    """Largest logit of the original, by its absolute value."""


def compare(evaluation: Evaluation, original: Forward, copy: Forward) -> Comparison:
    """Measure both, one after the other, each by the whole evaluation; the first one's logits are kept.

    Raises:
        TrainingError: logits that are not finite.
    """
    kept: deque[Tensor] = deque()
    same: list[Tensor] = []
    distances: list[Tensor] = []
    largest = 0.0

    def first(images: Tensor) -> Tensor:
        nonlocal largest
        logits = original(images).float().cpu()
        largest = max(largest, logits.abs().max().item())
        kept.append(logits)
        return logits

    def second(images: Tensor) -> Tensor:
        logits, wanted = copy(images).float().cpu(), kept.popleft()
        same.append(logits.argmax(dim=1) == wanted.argmax(dim=1))
        away = (logits - wanted).abs()
        distances.append(torch.stack([away.double().sum(), away.max().double()]))
        return logits

    before, after = evaluation.run(first), evaluation.run(second)
    alike, away = torch.cat(same), torch.stack(distances)
    logits = len(alike) * len(evaluation.folder.classes)
    return Comparison(
        before,
        after,
        alike.double().mean().item(),
        away[:, 0].sum().item() / logits,
        away[:, 1].max().item(),
        largest,
    )
