"""Object detection and instance segmentation."""

from typing import Any

import torch
from torch import Tensor, nn

from metaformer.data.dataset import AugmentedScenes
from metaformer.data.detection import DetectionFolder
from metaformer.data.detection_preprocess import DetectionPreprocess
from metaformer.data.loader import Batch
from metaformer.detection.detector import Detector
from metaformer.tasks.detect_evaluation import DetectEvaluation
from metaformer.tasks.detect_inference import DetectForward
from metaformer.tasks.detect_report import DetectReport
from metaformer.tasks.task import Moment


class Detect:
    """Find objects: their classes, boxes and, where the model gives them, masks.

    Args:
        model: gives `Detections`, or losses where it is also given targets.
        name: what the model is called.
        train: augmented training pictures with their objects.
        evaluation: the validation data.
        preprocess: how pictures become input when the model is used.
    """

    metric = "ap"

    def __init__(
        self,
        model: Detector,
        name: str,
        train: AugmentedScenes,
        evaluation: DetectEvaluation,
        preprocess: DetectionPreprocess,
    ) -> None:
        self.model, self.name, self.train = model, name, train
        self.evaluation, self.preprocess = evaluation, preprocess

    @property
    def data(self) -> DetectionFolder:
        """The training data, which names the classes."""
        return self.train.scenes

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Losses of a batch of pictures."""
        losses: dict[str, Tensor] = model(batch.images, batch.targets, batch.sizes)
        return losses

    def names(self, batch: Batch) -> list[str]:
        """Files that a batch came from."""
        return [str(self.data.path(int(index))) for index in batch.indices]

    def evaluate(self, forward: DetectForward) -> DetectReport:
        """Measure on the validation data."""
        return self.evaluation.run(forward)

    def close(self) -> None:
        """Stop the processes that read validation data."""
        self.evaluation.close()

    def card(self) -> dict[str, Any]:
        """Architecture, classes with their numbers in COCO's files, and preprocessing."""
        return {
            "task": "detect",
            "name": self.name,
            "model": self.model.config.to_dict(),
            "classes": list(self.data.classes),
            "palette": [list(colour) for colour in self.data.palette],
            "category_ids": list(self.data.category_ids),
            "preprocess": self.preprocess.to_dict(),
        }

    def hub_card(self) -> dict[str, Any]:
        """The same as `from_pretrained` reads it from `config.json`."""
        return {
            "library_name": "metaformer",
            "task": "detect",
            "architecture": self.name,
            "config": self.model.config.to_dict(),
            "pretrained_cfg": {
                "num_classes": len(self.data.classes),
                "label_names": list(self.data.classes),
                "palette": [list(colour) for colour in self.data.palette],
                "category_ids": list(self.data.category_ids),
                "preprocess": self.preprocess.to_dict(),
                "mean": list(self.preprocess.mean),
                "std": list(self.preprocess.std),
            },
        }
