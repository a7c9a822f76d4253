"""Multi-label predictions for images."""

from torch import Tensor

from metaformer.tasks.base import LoadedModel
from metaformer.tasks.classifier import BatchPredictor
from metaformer.tasks.multilabel.evaluate import chosen_thresholds
from metaformer.tasks.multilabel.results import MultilabelResult
from metaformer.tasks.outputs import Legend


class MultilabelPredictor(BatchPredictor):
    """The classes of images, any number of them each.

    Args:
        model: gives logits (B, K).
        batch_size: images at once.
        workers: processes that read images; 0 reads in this one.
        threshold: score from which on a class is predicted (default: the checkpoint's, one for each class).
        image_size: height and width of the network's input, in pixels (default: the checkpoint's).
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
        threshold: float | None = None,
        image_size: int | None = None,
        flip: bool = False,
        crops: int = 1,
    ) -> None:
        super().__init__(
            model, batch_size=batch_size, workers=workers, image_size=image_size, flip=flip, crops=crops
        )
        self.thresholds = chosen_thresholds(model, threshold)
        self.settings["thresholds"] = list(self.thresholds)

    @property
    def legend(self) -> Legend:
        """The thresholds of the classes."""
        return Legend(thresholds=self.thresholds)

    def results(self, paths: list[str], logits: Tensor) -> list[MultilabelResult]:
        """The classes of images from their logits (B, K)."""
        rows = zip(paths, logits.sigmoid().tolist(), strict=True)
        return [MultilabelResult(path, self.classes, tuple(scores), self.thresholds) for path, scores in rows]
