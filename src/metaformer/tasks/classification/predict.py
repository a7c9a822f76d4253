"""Class predictions for images, with test-time augmentation."""

from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.classifier import BatchPredictor


class ClassificationPredictor(BatchPredictor):
    """The most probable classes of images.

    Args:
        model: gives logits (B, K).
        batch_size: images at once.
        workers: processes that read images; 0 reads in this one.
        image_size: height and width of the network's input, in pixels (default: the checkpoint's).
        top_k: classes of each image, most probable first.
        flip: average with the mirrored image.
        crops: 1 for the center crop, 5 to average it with the corners.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch_size: int = 32,
        workers: int = 0,
        image_size: int | None = None,
        top_k: int = 5,
        flip: bool = False,
        crops: int = 1,
    ) -> None:
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}: it must be at least 1")
        super().__init__(
            model, batch_size=batch_size, workers=workers, image_size=image_size, flip=flip, crops=crops
        )
        self.top_k = min(top_k, len(self.classes))
        self.settings["top_k"] = self.top_k

    def results(self, paths: list[str], logits: Tensor) -> list[Classification]:
        """The best classes of images from their logits (B, K)."""
        best = logits.softmax(dim=1).topk(self.top_k, dim=1)
        rows = zip(paths, best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            Classification(path, tuple(self.classes[k] for k in ks), tuple(scores), tuple(ks))
            for path, scores, ks in rows
        ]
