"""Class predictions for images, with test-time augmentation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metaformer.data.dataset import AugmentedDataset, Batch, Source
from metaformer.data.loader import Loader, Stop
from metaformer.data.sampler import EvalSampler
from metaformer.errors import ConfigError
from metaformer.tasks.base import Forward, LoadedModel
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.stream import ImageList


def average_views(forward: Forward, images: Tensor, flip: bool = False) -> Tensor:
    """Logits (B, K) of images (B, 3, H, W), averaged over crops (B, crops, 3, H, W) and mirrored images."""
    views = images.flatten(0, 1) if images.ndim == 5 else images
    logits = forward(views)
    if flip:
        logits = (logits + forward(views.flip(-1))) / 2
    return logits.unflatten(0, images.shape[:2]).mean(dim=1) if images.ndim == 5 else logits


class BatchPredictor:
    """Predictions in batches, from images that all become input of one size.

    Args:
        model: gives logits (B, K).
        batch_size: images at once.
        workers: processes that read images; 0 reads in this one.
        image_size: height and width of the network's input, in pixels (default: the checkpoint's).
        flip: average with the mirrored image.
        crops: 1 for the center crop, 5 to average it with the corners.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch_size: int = 32,
        workers: int = 0,
        image_size: int | None = None,
        flip: bool = False,
        crops: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: it must be at least 1")
        self.model = model.with_preprocess(image_size=image_size)
        self.transform = self.model.preprocess.transform(crops)
        self.classes, self.batch_size, self.workers, self.flip = model.class_names, batch_size, workers, flip
        self.settings: dict[str, Any] = {"flip": flip, "crops": crops}

    def predict(self, source: ImageList) -> Iterator[Prediction[Any]]:
        """Predictions in order."""
        sampler = EvalSampler(len(source), batch_size=self.batch_size)
        for batch, results in self.batches(source, sampler):
            for index, result in zip(batch.indices.tolist(), results, strict=True):
                yield Prediction(result, None if result.path else source.image(index))

    def batches(
        self, source: Source, sampler: EvalSampler, *, stop: Stop | None = None, skip_bad: bool = False
    ) -> Iterator[tuple[Batch, list[Any]]]:
        """Results of the images that a sampler names, batch by batch.

        Args:
            source: the images.
            sampler: which of them, in which order.
            stop: asked again and again; once it is true, waiting for data ends.
            skip_bad: leave out images that cannot be read, and list them in the batch.

        Raises:
            BadImage: an image cannot be read.
            Interrupted: `stop` was true.
        """
        loader = Loader(
            AugmentedDataset(source, self.transform),
            sampler,
            workers=min(self.workers, len(source)),
            pin_memory=self.model.device.type == "cuda",
            stop=stop,
            skip_bad=skip_bad,
        )
        try:
            for batch in loader:
                paths = [str(source.path(index)) for index in batch.indices.tolist()]
                yield batch, self.results(paths, self._logits(batch.images))
        finally:
            loader.close()

    def results(self, paths: list[str], logits: Tensor) -> list[Any]:
        """Results of images from their logits (B, K)."""
        raise NotImplementedError

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        return average_views(self.model.forward, images, self.flip).float()


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
