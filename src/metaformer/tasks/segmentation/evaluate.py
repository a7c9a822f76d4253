"""Evaluation of segmenters: every image once, at the size of its label map, on any number of ranks."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.distributed import all_reduce_sum, lockstep
from metaformer.errors import DataError
from metaformer.tasks.base import Evaluation, LoadedModel, Loading
from metaformer.tasks.dense import WorstAndBest
from metaformer.tasks.segmentation.dataset import (
    SegmentationDataset,
    SegmentationFolder,
    open_parts,
    open_segmentation,
)
from metaformer.tasks.segmentation.metrics import ConfusionMatrix, figures, mean_iou
from metaformer.tasks.segmentation.predict import InferenceConfig, predict_label_map, run_inference
from metaformer.tasks.segmentation.results import SegmentationReport, SegmentExample, areas, thumbnail
from metaformer.tasks.segmentation.tiled_inference import LogitsFn


class SegmentationEvaluation(Evaluation):
    """Evaluation on a data set; `run` evaluates one network.

    Args:
        source: images and label maps.
        preprocess: preprocessing of the images.
        inference: windows and test-time augmentation; whole images in one view by default.
        loading: how images are read.
    """

    def __init__(
        self,
        source: SegmentationFolder,
        preprocess: DensePreprocess,
        *,
        inference: InferenceConfig | None = None,
        **loading: Unpack[Loading],
    ) -> None:
        self.source, self.preprocess, self.inference = source, preprocess, inference or InferenceConfig()
        # workers resize if there is one scale, and a bound on the input size
        self.resized = self.inference.scales == (1.0,) and preprocess.long_side is not None
        transform = _Pair(preprocess if self.resized else None)
        super().__init__(SegmentationDataset(source, transform, background=preprocess.background), **loading)

    def run(self, forward: LogitsFn) -> SegmentationReport:
        """Evaluate a network on all ranks.

        Raises:
            TrainingError: logits are not finite; the message names the image.
            DataError: a label map does not match its prediction.
            Interrupted: `stop` was true on any rank.
        """
        results = _Results(self.source)
        for _ in lockstep(self._images(forward, results), self.most):
            pass
        return results.report()

    def _images(self, forward: LogitsFn, results: "_Results") -> Iterator[int]:
        """Evaluate image by image; errors in here reach all ranks."""
        for batch in self.loader:
            index, x, labels = int(batch.indices[0]), batch.images[0], batch.labels[0]
            image = x if self.resized else Image.fromarray(x.numpy())
            size, name = (labels.shape[0], labels.shape[1]), self.source.path(index)
            predicted = predict_label_map(forward, image, self.inference, self.preprocess, size, name=name)
            results.update(index, predicted, labels)
            yield index


class _Pair:
    """Image, preprocessed or (H, W, 3) uint8, and label map as tensors."""

    def __init__(self, preprocess: DensePreprocess | None) -> None:
        self.transform = None if preprocess is None else preprocess.transform()

    def __call__(self, image: Image.Image, labels: NDArray[np.integer[Any]]) -> tuple[Tensor, Tensor]:
        if labels.dtype == np.uint16:
            labels = labels.astype(np.int32)  # few operations of torch take uint16
        x = torch.from_numpy(np.array(image)) if self.transform is None else self.transform(image)
        return x, torch.from_numpy(labels)


class _Results:
    """Confusion matrix and examples of one evaluation, on this rank until `report`."""

    def __init__(self, source: SegmentationFolder) -> None:
        self.source = source
        self.confusion = ConfusionMatrix(len(source.classes))
        self.images = 0
        self.examples = WorstAndBest[SegmentExample]()

    def update(self, index: int, predicted: Tensor, labels: Tensor) -> None:
        try:
            added = self.confusion.update(predicted, labels, self.source.ignore_index)
        except DataError as error:
            raise DataError(f"{self.source.label_path(index)}: {error}") from error
        self.images += 1
        miou = mean_iou(added)
        if miou is not None:
            self.examples.update(
                miou,
                str(self.source.path(index)),
                lambda: self._example(index, miou, predicted.numpy(), labels.numpy()),
            )

    def _example(
        self, index: int, miou: float, predicted: NDArray[Any], labels: NDArray[Any]
    ) -> SegmentExample:
        palette, both = self.source.palette, areas(np.concatenate([predicted, labels]))
        return SegmentExample(
            path=str(self.source.path(index)),
            index=index,
            miou=miou,
            truth=thumbnail(labels, palette),
            predicted=thumbnail(predicted, palette),
            labels=tuple(label for label in both if label != self.source.ignore_index),
        )

    def report(self) -> SegmentationReport:
        confusion = self.confusion.result()
        return SegmentationReport(
            images=int(all_reduce_sum(torch.tensor(self.images))),
            figures=figures(confusion, self.source.classes),
            confusion=confusion,
            palette=self.source.palette,
            examples=self.examples.result(),
        )


def build_evaluation(
    model: LoadedModel,
    data: str | Path | None,
    split: str | None,
    *,
    batch_size: int = 1,
    workers: int = 4,
    layout: Literal["auto", "ade20k", "voc", "cityscapes", "coco_stuff", "folders", "fiftyone"] | None = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    sliding_window: int | None = None,
) -> SegmentationEvaluation:
    """The evaluation of a segmenter on images with label maps.

    Args:
        model: what is evaluated.
        data: folder of the data set; None for the run's own.
        split: its split; None for the run's own, or `val`.
        batch_size: not used: images are evaluated one at a time.
        workers: processes that read images.
        layout: how the data set lies on disk (default: the run's own, or recognized).
        scales: test-time augmentation: factors of the input's size, such as 0.75,1,1.25.
        flip: average with the mirrored image.
        sliding_window: side of overlapping windows that are evaluated and averaged, in pixels; 0 for none.

    Raises:
        ConfigError: a value out of range, no data, or another number of classes than the network has.
        DataError: the data set is not laid out as it should be.
    """
    folder = model.own_part(data, split, partial(open_parts, layout=layout)) or open_segmentation(
        *model.location(data, split),
        layout or model.options.layout,
        classes=list(model.classes) if model.classes else None,
        reduce_zero_label=model.options.reduce_zero_label,
    )
    model.check_classes(folder.classes, folder.folder)
    return SegmentationEvaluation(
        folder,
        model.preprocess,
        inference=run_inference(model.config, scales, flip, sliding_window),
        workers=workers,
        pin_memory=model.device.type == "cuda",
    )
