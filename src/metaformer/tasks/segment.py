"""Semantic segmentation."""

from typing import Any

import torch
from torch import Tensor, nn

from metaformer.data.dataset import AugmentedPairs
from metaformer.data.dense_preprocess import DensePreprocess
from metaformer.data.loader import Batch
from metaformer.data.segmentation import SegmentationFolder
from metaformer.dense.segmenter import Segmenter
from metaformer.tasks.segment_evaluation import SegmentEvaluation
from metaformer.tasks.segment_results import SegmentReport
from metaformer.tasks.task import Forward, Moment


class Segment:
    """Tell the classes of pixels apart.

    Args:
        model: gives logits (B, K, H, W), or losses where it is also given label maps.
        name: what the model is called.
        train: augmented training pictures with their label maps.
        evaluation: the validation data.
        preprocess: how pictures become input when the model is used.
    """

    metric = "miou"

    def __init__(
        self,
        model: Segmenter,
        name: str,
        train: AugmentedPairs,
        evaluation: SegmentEvaluation,
        preprocess: DensePreprocess,
    ) -> None:
        self.model, self.name, self.train = model, name, train
        self.evaluation, self.preprocess = evaluation, preprocess

    @property
    def data(self) -> SegmentationFolder:
        """The training data, which names the classes."""
        return self.train.pairs

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Losses of a batch of crops."""
        losses: dict[str, Tensor] = model(batch.images, batch.labels)
        return losses

    def names(self, batch: Batch) -> list[str]:
        """Files that a batch came from."""
        return [str(self.data.path(int(index))) for index in batch.indices]

    def evaluate(self, forward: Forward) -> SegmentReport:
        """Measure on the validation data."""
        return self.evaluation.run(forward)

    def close(self) -> None:
        """Stop the processes that read validation data."""
        self.evaluation.close()

    def card(self) -> dict[str, Any]:
        """Architecture, classes with their colours, and preprocessing."""
        return {
            "task": "segment",
            "name": self.name,
            "model": self.model.config.to_dict(),
            "classes": list(self.data.classes),
            "palette": [list(colour) for colour in self.data.palette],
            "preprocess": self.preprocess.to_dict(),
        }

    def hub_card(self) -> dict[str, Any]:
        """The same as `from_pretrained` reads it from `config.json`."""
        return {
            "library_name": "metaformer",
            "task": "segment",
            "architecture": self.name,
            "config": self.model.config.to_dict(),
            "pretrained_cfg": {
                "num_classes": len(self.data.classes),
                "label_names": list(self.data.classes),
                "palette": [list(colour) for colour in self.data.palette],
                "preprocess": self.preprocess.to_dict(),
                "mean": list(self.preprocess.mean),
                "std": list(self.preprocess.std),
            },
        }
