"""Detection in images of any size, with test-time augmentation."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, TrainingError, UnknownName
from metaformer.models.detection.structures import Detections, Size
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.dense import MultiScaleFlip
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.detection.transforms import DetectionPreprocess, pad_images
from metaformer.tasks.outputs import Legend
from metaformer.tasks.stream import StreamPredictor

DEFAULT_SCORE = 0.3
"""Score from which objects are reported where validation data have not chosen another."""
DetectForward = Callable[[Tensor, Sequence[Size], Sequence[Size]], list[Detections]]
"""`Detector.predict`: images (B, 3, H, W), sizes of the images inside, and sizes that boxes are scaled to."""


@dataclass(frozen=True)
class DetectInference(MultiScaleFlip):
    """Test-time augmentation; the default is none."""

    nms_threshold: float = 0.5
    """IoU above which the worse of two boxes of a class, from all views, is removed."""
    max_detections: int = 100
    """Objects of an image, at most."""

    @torch.inference_mode()
    def detections(
        self,
        forward: DetectForward,
        image: Image.Image | Tensor,
        preprocess: DetectionPreprocess | None = None,
        original_size: Size | None = None,
        *,
        name: str | Path = "the image",
    ) -> Detections:
        """Objects of an image, on the CPU, best first, with boxes in the image's own pixels.

        Args:
            forward: the network.
            image: an RGB image, or a preprocessed tensor (3, h, w).
            preprocess: preprocessing of an RGB image.
            original_size: height and width that boxes are scaled to; the image's own by default.
            name: the image's name in errors.

        Raises:
            TrainingError: boxes or scores are not finite.
            ConfigError: several scales of a tensor, or an image without preprocessing.
        """
        own = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
        size = (own[0], own[1]) if original_size is None else original_size
        inputs = self.inputs(image, preprocess, lambda rgb, scaled: scaled.transform()(rgb), lambda x: x)
        views = [
            _detect(forward, x.flip(-1) if flip else x, size, flip, name)
            for x in inputs
            for flip in self.flips
        ]
        return views[0] if len(views) == 1 else self._merge(views)

    def _merge(self, views: Sequence[Detections]) -> Detections:
        """Detections of all views after NMS, each with its own mask."""
        from metaformer.models.detection.nms import batched_nms

        boxes, scores, labels = (
            torch.cat([getattr(view, name) for view in views]) for name in ("boxes", "scores", "labels")
        )
        masks = [view.masks for view in views if view.masks is not None]
        rows = batched_nms(boxes, scores, labels, self.nms_threshold, self.max_detections)
        return Detections(boxes, scores, labels, torch.cat(masks) if masks else None)[rows]


def _detect(forward: DetectForward, x: Tensor, size: Size, flipped: bool, name: str | Path) -> Detections:
    """Detections of one view (3, h, w), scaled to an image of this height and width, flipped back."""
    try:
        (found,) = forward(pad_images([x]), [(x.shape[-2], x.shape[-1])], [size])
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except TrainingError as error:
        raise TrainingError(f"{name}: {error}") from error
    found = found.to(torch.device("cpu"))
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise TrainingError(f"{name}: boxes or scores are not finite: the weights may be damaged")
    if not flipped:
        return found
    boxes = found.boxes.clone()
    boxes[:, 0], boxes[:, 2] = size[1] - found.boxes[:, 2], size[1] - found.boxes[:, 0]
    return replace(found, boxes=boxes, masks=None if found.masks is None else found.masks.flip(-1))


def run_inference(
    config: TrainConfig | None, scales: Sequence[float] | None = None, flip: bool = False
) -> DetectInference:
    """Test-time augmentation of a run's evaluation, with some of it changed.

    Args:
        config: the run; None for a published network.
        scales: factors of the input's size; None for the run's own.
        flip: also detect in the mirrored image.
    """
    own = DetectInference()
    if config is not None:
        options = config.detect
        own = DetectInference(
            scales=tuple(options.scales),
            flip=config.evaluate.flip,
            nms_threshold=options.nms_threshold,
            max_detections=options.max_detections,
        )
    return own.changed(scales, flip)


class DetectionPredictor(StreamPredictor[DetectedObjects]):
    """The objects in images of any size.

    Args:
        model: a detector.
        batch_size: not used: images are predicted one at a time.
        workers: threads that read images ahead; 0 reads each when it is due.
        scales: test-time augmentation: factors of the input's size, such as 0.75,1,1.25.
        flip: also detect in the mirrored image, and merge.
        score: leave out objects with a lower score (default: 0.3, or less where drawings show less; these
            begin at the score of the best F1 on the run's validation data, which its checkpoint keeps).
        classes: names of the classes to report, such as cat,dog (default: all).
        class_agnostic_nms: of overlapping boxes report the best alone, whatever their classes.

    Raises:
        ConfigError: a score outside 0 to 1.
        UnknownName: a class that the network does not know.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch_size: int = 1,
        workers: int = 0,
        scales: Sequence[float] | None = None,
        flip: bool = False,
        score: float | None = None,
        classes: Sequence[str] | None = None,
        class_agnostic_nms: bool = False,
    ) -> None:
        super().__init__(workers, model.preprocess.background)
        chosen = model.metadata.score
        self.draw_score = 0.0 if score is not None or chosen is None else chosen
        """Score from which objects are drawn, of those that are reported."""
        if score is None:
            score = DEFAULT_SCORE if chosen is None else min(DEFAULT_SCORE, chosen)
        if not 0 <= score <= 1:
            raise ConfigError(f"score is {score}: it must lie between 0 and 1")
        self.model, self.classes = model, model.class_names
        for name in classes or ():
            if name not in self.classes:
                raise UnknownName("class", name, self.classes)
        self.inference = run_inference(model.config, scales, flip)
        self.score, self.wanted = score, None if classes is None else tuple(classes)
        self.class_agnostic_nms = class_agnostic_nms
        self.settings = {
            **asdict(self.inference),
            "score": score,
            "classes": self.wanted,
            "class_agnostic_nms": class_agnostic_nms,
        }

    @property
    def legend(self) -> Legend:
        """The colors of the classes, and the score from which objects are drawn."""
        return Legend(colors=self.model.metadata.palette, draw_score=self.draw_score)

    def predict_image(self, image: Image.Image, path: str, name: str) -> DetectedObjects:
        """The objects in an RGB image."""
        detections = self.inference.detections(self.model.forward, image, self.model.preprocess, name=name)
        palette = self.model.metadata.palette
        objects = DetectedObjects.from_detections(detections, path, image.size, self.classes, palette)
        objects = replace(objects.filtered(self.score, self.wanted), draw_score=self.draw_score)
        return objects.suppressed(self.inference.nms_threshold) if self.class_agnostic_nms else objects
