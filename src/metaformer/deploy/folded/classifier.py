"""Classifiers whose kernel calls are captured and replayed, from images to logits."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from metaformer.backbones.metaformer import MetaFormer
from metaformer.deploy.folded.head import FoldedHead
from metaformer.deploy.folded.linear import WeightCache
from metaformer.deploy.folded.replay import has_hooks, replay


class ReplayableClassifier(WeightCache, MetaFormer):
    """Classifier of folded parts, whose kernel calls are captured as a stage's are, from images to logits."""

    def __init__(self, network: MetaFormer) -> None:
        self.adopt(network)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to logits (B, num_classes)."""
        run = partial(MetaFormer.forward, self)
        if torch.compiler.is_compiling():
            return run(x)
        parts = list(self._parts())
        if any(map(has_hooks, parts)):
            return run(x)
        head = self.head.state() if isinstance(self.head, FoldedHead) else self.head
        return replay(self, run, self._checked(x), head, *map(id, parts))

    def _parts(self) -> Iterator[nn.Module]:
        """The modules that others may have given hooks to: all but those in blocks."""
        yield from (*self.stem.modules(), *self.head.modules(), self.stages)
        for stage in self.stages.children():
            yield stage
            for name, part in stage.named_children():
                yield from (part, *part) if name == "blocks" else part.modules()  # type: ignore[misc]
