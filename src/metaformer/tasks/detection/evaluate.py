"""Measuring a detector: every image once, in its own pixels, by however many processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.data.loader import DATA_TIMEOUT, Loader, Stop
from metaformer.data.rle import decode, encode
from metaformer.data.sampler import EvalSampler
from metaformer.distributed import all_gather_list, all_reduce_sum, lockstep, rank, world_size
from metaformer.models.detection.structures import Targets
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.detection.dataset import DetectionDataset, DetectionFolder, open_detection
from metaformer.tasks.detection.instances import Instance
from metaformer.tasks.detection.metrics import AveragePrecision, Kind
from metaformer.tasks.detection.polygons import polygons_mask
from metaformer.tasks.detection.predict import DetectForward, DetectInference, run_inference
from metaformer.tasks.detection.preprocess import DetectionPreprocess
from metaformer.tasks.detection.results import DetectedObjects, DetectExample, DetectionReport, ExampleObject


class DetectionEvaluation:
    """A validation set and the way it is looked at; `run` measures one network.

    Args:
        source: images and their objects.
        preprocess: how images become input.
        inference: in one view or several; one when not given.
        masks: measure masks, too.
        workers: processes that read.
        pin_memory: keep batches in page-locked memory, for copies to CUDA.
        timeout: seconds to wait for a worker before giving up.
        stop: asked again and again; once it says so, the evaluation ends unfinished.

    Raises:
        MissingPackage: faster-coco-eval, which measures, is not installed.
    """

    def __init__(
        self,
        source: DetectionFolder,
        preprocess: DetectionPreprocess,
        *,
        inference: DetectInference | None = None,
        masks: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = DATA_TIMEOUT,
        stop: Stop | None = None,
    ) -> None:
        self.source, self.preprocess, self.masks = source, preprocess, masks
        self.inference = inference or DetectInference()
        self.document = source.document()
        AveragePrecision(self.document, self.kinds)  # what is wrong shows before anything is learned
        sampler = EvalSampler(len(source), batch_size=1, rank=rank(), world=world_size())
        self.most = sampler.most
        # Workers resize, where one size is all that the network wants.
        self.resized = self.inference.scales == (1.0,)
        self.loader = Loader(
            DetectionDataset(source, _Image(preprocess if self.resized else None), masks=False),
            sampler,
            workers=workers,
            pin_memory=pin_memory,
            timeout=timeout,
            stop=stop,
        )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What overlaps are measured of, in COCO's words."""
        return ("bbox", "segm") if self.masks else ("bbox",)

    def run(self, forward: DetectForward) -> DetectionReport:
        """Measure; `forward` finds objects in images (B, 3, h, w).

        Raises:
            TrainingError: boxes or scores that are not finite; the message names the image.
            Interrupted: `stop` said so, on whatever rank.
        """
        precision = AveragePrecision(self.document, self.kinds)
        examples = Examples()
        seen = 0
        for index, found in lockstep(self._found(forward), self.most):
            precision.update(found.as_found(self.source.image_id(index)))
            examples.update(index, found, self.source.instances(index))
            seen += 1
        return DetectionReport(
            images=int(all_reduce_sum(torch.tensor(seen))),
            figures=precision.result(),
            palette=self.source.palette,
            examples=examples.chosen(),
        )

    def _found(self, forward: DetectForward) -> Iterator[tuple[int, DetectedObjects]]:
        """Look at image after image; what can go wrong does so in here, where all ranks hear of it."""
        for batch in self.loader:
            index, (height, width) = int(batch.indices[0]), batch.sizes[0]
            x = batch.images[0, :, :height, :width]
            image = x if self.resized else Image.fromarray(x.permute(1, 2, 0).numpy())
            size, name = self.source.size(index), self.source.path(index)
            found = self.inference.detections(forward, image, self.preprocess, (size[1], size[0]), name=name)
            yield (
                index,
                DetectedObjects.from_detections(
                    found, str(name), size, self.source.classes, self.source.palette
                ),
            )

    def close(self) -> None:
        """Stop the processes that read."""
        self.loader.close()


class _Image:
    """An image as input, or as it is, (3, h, w); its objects are those of the document."""

    def __init__(self, preprocess: DetectionPreprocess | None) -> None:
        self.transform = None if preprocess is None else preprocess.transform()

    def __call__(self, image: Image.Image, targets: Targets) -> tuple[Tensor, Targets]:
        none = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        if self.transform is not None:
            return self.transform(image), none
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), none


EXAMPLES = 6
"""Images of each kind, the worst and the best, that a report keeps."""


SCORE = 0.3
"""Objects that are less sure are neither counted nor shown."""


OVERLAP = 0.5
"""Least intersection over union of a box that is right."""


THUMBNAIL = 256
"""Longest side, in pixels, of the masks that a report holds."""


@dataclass
class Examples:
    """The worst and the best images so far."""

    worst: list[DetectExample] = field(default_factory=list)
    best: list[DetectExample] = field(default_factory=list)

    def update(self, index: int, found: DetectedObjects, truth: Sequence[Instance]) -> None:
        """Look at an image: its place in the data set, what was found, what is annotated."""
        sure = found.filtered(SCORE)
        f1 = agreement(sure, truth)
        if f1 is None:
            return
        rank = (f1, found.path)
        low = len(self.worst) < EXAMPLES or rank < _rank(self.worst[-1])
        high = len(self.best) < EXAMPLES or rank > _rank(self.best[0])
        if low or high:
            annotated = tuple(_annotated(one, found.size) for one in truth)
            example = DetectExample(found.path, index, found.size, f1, annotated, _predicted(sure))
            self.worst = sorted([*self.worst, example], key=_rank)[:EXAMPLES]
            self.best = sorted([*self.best, example], key=_rank)[-EXAMPLES:]

    def chosen(self) -> tuple[DetectExample, ...]:
        """The worst of all ranks, then the best; none twice."""
        worst = sorted(all_gather_list(self.worst), key=_rank)[:EXAMPLES]
        best = sorted(all_gather_list(self.best), key=_rank, reverse=True)[:EXAMPLES]
        shown = {example.index for example in worst}
        return (*worst, *(example for example in best if example.index not in shown))


def agreement(found: DetectedObjects, truth: Sequence[Instance]) -> float | None:
    """F1 of the boxes of one image, each taken for the one it covers best; crowds neither help nor harm.

    None where there is nothing to find, and nothing was found.
    """
    overlaps, inside = _overlaps(found.boxes, np.array([one.box for one in truth]).reshape(-1, 4))
    same = found.labels[:, None] == np.array([one.label for one in truth], np.int64)
    crowd = np.array([one.crowd for one in truth], bool)
    free, right, excused = ~crowd, 0, 0
    for row in range(len(found)):
        fits = np.where(same[row] & free, overlaps[row], 0.0)
        if fits.max(initial=0.0) >= OVERLAP:
            free[fits.argmax()] = False
            right += 1
        else:
            excused += bool((inside[row, crowd & same[row]] >= OVERLAP).any())
    whole = len(found) - excused + int((~crowd).sum())
    return 2 * right / whole if whole else None


def _overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Intersection over union (N, M), and the share of each box that lies in each other (N, M)."""
    start = np.maximum(boxes[:, None, :2], others[:, :2])
    both = (np.minimum(boxes[:, None, 2:], others[:, 2:]) - start).clip(0).prod(axis=2)
    own, its = ((some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, others))
    either = own[:, None] + its - both
    return both / np.where(either > 0, either, 1), both / np.where(own > 0, own, 1)[:, None]


def _predicted(found: DetectedObjects) -> tuple[ExampleObject, ...]:
    masks = [None if found.masks is None else _small(found.mask(place)) for place in range(len(found))]
    rows = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), masks, strict=True)
    return tuple(ExampleObject(label, tuple(box), score, mask=mask) for label, box, score, mask in rows)


def _annotated(one: Instance, size: tuple[int, int]) -> ExampleObject:
    outline, mask = one.segmentation, None
    if isinstance(outline, list):
        corners = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in outline]
        mask = _small(polygons_mask(corners, (size[1], size[0])))
    elif outline is not None:
        mask = _small(decode(outline))
    return ExampleObject(one.label, one.box, crowd=one.crowd, mask=mask)


def _small(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths of a mask made small; each of its pixels is one of the mask's."""
    share = max(1.0, max(mask.shape) / THUMBNAIL)
    rows, columns = (
        ((np.arange(fewer) * 2 + 1) * side) // (2 * fewer)
        for side, fewer in ((side, max(1, round(side / share))) for side in mask.shape)
    )
    return encode(mask[rows[:, None], columns])


def _rank(example: DetectExample) -> tuple[float, str]:
    return example.f1, example.path


def build_evaluation(
    model: LoadedModel,
    data: str | Path | None,
    split: str | None,
    *,
    batch_size: int = 1,
    workers: int = 4,
    layout: Literal["auto", "coco", "voc", "yolo"] | None = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
) -> DetectionEvaluation:
    """The evaluation of a detector on images with annotated objects.

    Args:
        model: what is evaluated.
        data: folder of the data set; None for the run's own.
        split: its split; None for the run's own, or `val`.
        batch_size: not used: images are evaluated one at a time.
        workers: processes that read images.
        layout: how the data set lies on disk (default: recognized).
        scales: test-time augmentation: factors of the input's size, such as 0.75,1,1.25.
        flip: also detect in the mirrored image, and merge.

    Raises:
        ConfigError: a value out of range, no data, or another number of classes than the network has.
        DataError: the data set is not laid out as it should be.
    """
    run = model.config
    has_masks = bool(model.model.has_masks)
    folder = open_detection(
        model.data_root(data),
        split or (run.data.val if run is not None else "val"),
        layout or (run.detect.layout if run is not None else "auto"),
        classes=list(model.classes) if model.classes else None,
        masks=None if has_masks else False,  # a network with masks can be evaluated on boxes alone
    )
    model.check_classes(folder.classes, folder.folder)
    folder.check_any()
    return DetectionEvaluation(
        folder,
        model.preprocess,
        inference=run_inference(run, scales, flip),
        masks=has_masks and folder.has_masks,
        workers=workers,
        pin_memory=model.device.type == "cuda",
    )
