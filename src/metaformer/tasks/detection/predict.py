"""From an image to the objects in it: in one view or several."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, TrainingError, UnknownName
from metaformer.models.detection.structures import Detections, Size
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.detection.preprocess import DetectionPreprocess, stack
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.stream import StreamPredictor

DetectForward = Callable[[Tensor, Sequence[Size], Sequence[Size]], list[Detections]]
"""What finds objects: images (B, 3, H, W), their sizes in these, and the sizes that boxes are to refer to."""


@dataclass(frozen=True)
class DetectInference:
    """How an image is looked at; the default is once."""

    scales: tuple[float, ...] = (1.0,)
    """Test-time augmentation: sizes of the input, as factors."""
    flip: bool = False
    """Test-time augmentation: each size also mirrored left to right."""
    nms_threshold: float = 0.5
    """Of two boxes of a class from different views that overlap by more than this IoU one is kept."""
    max_detections: int = 100
    """Most objects of an image."""

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ConfigError(f"scales is {self.scales}: it must be numbers above 0, and at least one")

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
        """Objects of an image, on the CPU, their boxes in the image's own pixels, best first.

        Args:
            forward: the network.
            image: an RGB image, or a normalized tensor (3, h, w) that is looked at as it is.
            preprocess: how an image becomes input; a tensor needs none.
            original_size: height and width that boxes refer to; the image's own when not given.
            name: what errors call the image.

        Raises:
            TrainingError: boxes or scores that are not finite.
            ConfigError: several scales of a tensor, or an image without preprocessing.
        """
        own = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
        size = (own[0], own[1]) if original_size is None else original_size
        found = []
        for x in self._sights(image, preprocess):
            for mirrored in (False, True)[: 1 + self.flip]:
                found.append(_seen(forward, x.flip(-1) if mirrored else x, size, mirrored, name))
        return found[0] if len(found) == 1 else self._merged(found)

    def _sights(
        self, image: Image.Image | Tensor, preprocess: DetectionPreprocess | None
    ) -> Iterator[Tensor]:
        if isinstance(image, Tensor):
            if self.scales != (1.0,):
                raise ConfigError(f"scales is {self.scales}: a tensor has one size only; give the image")
            yield image
            return
        if preprocess is None:
            raise ConfigError("preprocess: say how an image becomes input")
        for scale in self.scales:
            yield preprocess.scaled(scale).transform()(image)

    def _merged(self, found: Sequence[Detections]) -> Detections:
        """Join what views saw: of boxes on one object the best, with its own mask."""
        from metaformer.models.detection.nms import batched_nms

        boxes, scores, labels = (
            torch.cat([getattr(one, part) for one in found]) for part in ("boxes", "scores", "labels")
        )
        masks = (
            None
            if found[0].masks is None
            else torch.cat([one.masks for one in found if one.masks is not None])
        )
        kept = batched_nms(boxes, scores, labels, self.nms_threshold, self.max_detections)
        return Detections(boxes[kept], scores[kept], labels[kept], None if masks is None else masks[kept])


def _seen(forward: DetectForward, image: Tensor, size: Size, mirrored: bool, name: str | Path) -> Detections:
    """What one view shows, in the frame of the image."""
    inside = (image.shape[-2], image.shape[-1])
    try:
        (found,) = forward(stack([image]), [inside], [size])
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except TrainingError as error:
        raise TrainingError(f"{name}: {error}") from error
    found = found.to(torch.device("cpu"))
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise TrainingError(f"{name}: boxes or scores are not finite: the weights may be damaged")
    if not mirrored:
        return found
    boxes = found.boxes.clone()
    boxes[:, 0], boxes[:, 2] = size[1] - found.boxes[:, 2], size[1] - found.boxes[:, 0]
    return Detections(
        boxes, found.scores, found.labels, None if found.masks is None else found.masks.flip(-1)
    )


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
    return replace(own, flip=own.flip or flip, scales=tuple(scales) if scales else own.scales)


class DetectionPredictor(StreamPredictor[DetectedObjects]):
    """The objects in images of any size.

    Args:
        model: a detector.
        batch_size: not used: images are predicted one at a time.
        workers: threads that read images ahead; 0 reads each when it is due.
        scales: test-time augmentation: factors of the input's size, such as 0.75,1,1.25.
        flip: also detect in the mirrored image, and merge.
        score: leave out objects with a lower score.
        classes: names of the classes to report, such as cat,dog (default: all).

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
        score: float = 0.3,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(workers)
        if not 0 <= score <= 1:
            raise ConfigError(f"score is {score}: it must lie between 0 and 1")
        self.model, self.classes = model, model.class_names
        for name in classes or ():
            if name not in self.classes:
                raise UnknownName("class", name, self.classes)
        self.inference = run_inference(model.config, scales, flip)
        self.score, self.wanted = score, None if classes is None else tuple(classes)
        self.settings = {**asdict(self.inference), "score": score, "classes": self.wanted}

    def predict_image(self, image: Image.Image, path: str, name: str) -> DetectedObjects:
        """The objects in an RGB image."""
        detections = self.inference.detections(self.model.forward, image, self.model.preprocess, name=name)
        palette = self.model.metadata.palette
        objects = DetectedObjects.from_detections(detections, path, image.size, self.classes, palette)
        return objects.filtered(self.score, self.wanted)
