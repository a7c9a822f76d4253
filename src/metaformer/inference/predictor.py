"""Predict: images in, their classes, those of their pixels, or the objects in them out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaformer.data.dataset import AugmentedDataset, Batch, Source
from metaformer.data.loader import Loader, Stop
from metaformer.data.preprocess import Preprocess
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.data.sampler import EvalSampler
from metaformer.distributed import find_device
from metaformer.errors import ConfigError
from metaformer.inference.evaluate import check_amp, detect_looks, looks, only_for
from metaformer.inference.model import DOES, load_model
from metaformer.tasks.classification.predict import average_views
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.detection.predict import ImageDetector
from metaformer.tasks.detection.preprocess import DetectionPreprocess
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.predict import ImageSegmenter
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.stream import ImageInput, ImageList, ImageStream

IMAGENET_CLASSES = 1000
SCORE = 0.3
"""Objects with a lower score are not shown to people, unless they ask."""


class Predictor:
    """A trained network as a function of images.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        checkpoint: weights for a model name; its published ones when not given.
        classes: class names, or a file with one in each line, where the source does not know them; a
            classifier of 1000 classes is taken to tell ImageNet's.
        image_size: pixels of a classifier's input; as the source says when not given.
        top_k: classes in each result of classification; 5 when not given.
        flip: average with the mirrored image.
        crops: in classification 1, or 5 for center and corners, averaged.
        scales: in segmentation and detection, sizes to look at, as factors; the run's own when not given.
        slide: in segmentation, side of overlapping windows to look through, in pixels; 0 for none.
        score: in detection, objects with a lower score are left out; 0.3 when not given.
        only: in detection, names of the classes that are told; all when not given.
        batch_size: images at once; in segmentation and detection one.
        workers: processes that read, in segmentation and detection threads; 0 reads in this one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: `none`, `bf16` or `fp16`.
        rewrite: what is done with the network on its device, such as `metaformer.optimize`.

    Raises:
        ConfigError: a value that cannot be, that is for another task, or no such source.
        WeightsError: the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        classes: str | Path | Sequence[str] | None = None,
        image_size: int | None = None,
        top_k: int | None = None,
        flip: bool = False,
        crops: int = 1,
        scales: Sequence[float] | None = None,
        slide: int | None = None,
        score: float | None = None,
        only: Sequence[str] | None = None,
        batch_size: int = 32,
        workers: int = 0,
        device: str = "auto",
        amp: str = "none",
        rewrite: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        check_amp(amp)
        wanted = 5 if top_k is None else top_k
        if wanted < 1 or batch_size < 1:
            raise ConfigError(f"top_k is {wanted}, batch_size {batch_size}: both must be at least 1")
        place = find_device(device)
        bundle = load_model(source, checkpoint, classes=classes)
        only_for(bundle, ("classify",), {"top_k": top_k is not None, "crops": crops != 1})
        only_for(bundle, ("segment", "detect"), {"scales": bool(scales)})
        only_for(bundle, ("segment",), {"slide": slide is not None})
        only_for(bundle, ("detect",), {"score": score is not None, "only": only is not None})
        self.bundle = bundle.looking(image_size).placed(place, amp)
        if rewrite is not None:
            self.bundle = replace(self.bundle, model=rewrite(self.bundle.model))
        self.task = bundle.task
        self.classes = bundle.classes or _numbered(int(bundle.model.num_classes), self.task)  # type: ignore[arg-type]
        self.top_k, self.flip, self.crops = min(wanted, len(self.classes)), flip, crops
        self.batch_size, self.workers = batch_size, workers
        self._stream: ImageStream[Any] | None = None
        if self.task == "segment":
            assert isinstance(self.bundle.preprocess, DensePreprocess)
            inference = looks(self.bundle, scales, slide, flip)
            self._stream = ImageSegmenter(
                self.bundle.forward,
                self.bundle.preprocess,
                self.classes,
                self.bundle.palette,
                inference,
                workers,
            )
        elif self.task == "detect":
            assert isinstance(self.bundle.preprocess, DetectionPreprocess)
            self._stream = ImageDetector(
                self.bundle.forward,
                self.bundle.preprocess,
                self.classes,
                self.bundle.palette,
                detect_looks(self.bundle, scales, flip),
                score=SCORE if score is None else score,
                only=only,
                workers=workers,
            )

    def __call__(
        self, images: ImageInput | Iterable[ImageInput]
    ) -> list[Classification] | list[Segmentation] | list[DetectedObjects]:
        """Predict for a file, a folder, a glob, an image, or a list of these; in order, files sorted.

        Gives `Classification`s; of a network that tells classes of pixels apart `Segmentation`s, of one that
        finds objects `DetectedObjects`, both at the images' own size, one for each frame of an animation or
        a video.

        Raises:
            DataError: nothing found, or an image that cannot be read.
        """
        return list(self.stream(images))  # type: ignore[return-value]

    def stream(
        self, images: ImageInput | Iterable[ImageInput]
    ) -> Iterator[Classification] | Iterator[Segmentation | DetectedObjects]:
        """Do the same one result after another, for more images than memory holds results of."""
        if self.task == "classify":
            return self.classified(images)
        return (seen.result for seen in self.seen(images))

    def classified(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[Classification]:
        """Do the same with a classifier.

        Raises:
            ConfigError: this network is for another task.
        """
        source = ImageList(images)
        sampler = EvalSampler(len(source), batch_size=self.batch_size)
        for _, results in self.batches(source, sampler):
            yield from results

    def seen(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[Prediction[Any]]:
        """Do the same with a segmenter or a detector; each result comes with its image.

        Raises:
            ConfigError: this network tells classes of images apart.
        """
        if self._stream is None:
            raise ConfigError(f"{self.bundle.name} {DOES[self.task]}: ask classified() for them")
        yield from self._stream.stream(ImageList(images))

    def batches(
        self, source: Source, sampler: EvalSampler, *, stop: Stop | None = None, skip_bad: bool = False
    ) -> Iterator[tuple[Batch, list[Classification]]]:
        """Classify those images of a source that a sampler names, batch by batch.

        Args:
            source: the images.
            sampler: which of them, in which order.
            stop: asked again and again; once it says so, waiting for data ends.
            skip_bad: leave out images that cannot be read, and say so in the batch.

        Raises:
            BadImage: an image cannot be read.
            Interrupted: `stop` said so.
            ConfigError: this network is for another task.
        """
        if self.task != "classify":
            raise ConfigError(f"{self.bundle.name} {DOES[self.task]}, not classes of images")
        assert isinstance(self.bundle.preprocess, Preprocess)
        loader = Loader(
            AugmentedDataset(source, self.bundle.preprocess.transform(self.crops)),
            sampler,
            workers=min(self.workers, len(source)),
            pin_memory=self.bundle.device.type == "cuda",
            stop=stop,
            skip_bad=skip_bad,
        )
        try:
            for batch in loader:
                yield batch, self._results(source, batch)
        finally:
            loader.close()

    @torch.inference_mode()
    def _results(self, source: Source, batch: Batch) -> list[Classification]:
        logits = average_views(self.bundle.forward, batch.images, self.flip)
        best = logits.float().softmax(dim=1).topk(self.top_k, dim=1)
        rows = zip(batch.indices.tolist(), best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            Classification(str(source.path(i)), tuple(self.classes[k] for k in ks), tuple(scores), tuple(ks))
            for i, scores, ks in rows
        ]


def _numbered(count: int, task: str) -> tuple[str, ...]:
    """Names where none were written down: ImageNet's words for a classifier's 1000 classes, else numbers."""
    if count != IMAGENET_CLASSES or task != "classify":
        return tuple(str(i) for i in range(count))
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(count))
