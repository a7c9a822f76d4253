"""From a picture to the objects in it: in one view or several."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metaformer.data.detection_preprocess import DetectionPreprocess, stack
from metaformer.detection.results import Detections, Size
from metaformer.errors import ConfigError, TrainingError

DetectForward = Callable[[Tensor, Sequence[Size], Sequence[Size]], list[Detections]]
"""What finds objects: images (B, 3, H, W), their sizes in these, and the sizes that boxes are to refer to."""


@dataclass(frozen=True)
class DetectInference:
    """How a picture is looked at; the default is once."""

    scales: tuple[float, ...] = (1.0,)
    """Test-time augmentation: sizes of the input, as factors."""
    flip: bool = False
    """Test-time augmentation: each size also mirrored left to right."""
    nms_threshold: float = 0.5
    """Of two boxes of a class from different views that overlap by more than this IoU one is kept."""
    max_detections: int = 100
    """Most objects of a picture."""

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ConfigError(f"scales is {self.scales}: it must be numbers above 0, and at least one")

    @torch.inference_mode()
    def detections(
        self,
        forward: DetectForward,
        picture: Image.Image | Tensor,
        preprocess: DetectionPreprocess | None = None,
        original_size: Size | None = None,
        *,
        name: str | Path = "the picture",
    ) -> Detections:
        """Objects of a picture, on the CPU, their boxes in the picture's own pixels, best first.

        Args:
            forward: the network.
            picture: an RGB picture, or a normalised tensor (3, h, w) that is looked at as it is.
            preprocess: how a picture becomes input; a tensor needs none.
            original_size: height and width that boxes refer to; the picture's own when not given.
            name: what errors call the picture.

        Raises:
            TrainingError: boxes or scores that are not finite.
            ConfigError: several scales of a tensor, or a picture without preprocessing.
        """
        own = picture.shape[-2:] if isinstance(picture, Tensor) else (picture.height, picture.width)
        size = (own[0], own[1]) if original_size is None else original_size
        found = []
        for image in self._sights(picture, preprocess):
            for mirrored in (False, True)[: 1 + self.flip]:
                found.append(_seen(forward, image.flip(-1) if mirrored else image, size, mirrored, name))
        return found[0] if len(found) == 1 else self._merged(found)

    def _sights(
        self, picture: Image.Image | Tensor, preprocess: DetectionPreprocess | None
    ) -> Iterator[Tensor]:
        if isinstance(picture, Tensor):
            if self.scales != (1.0,):
                raise ConfigError(f"scales is {self.scales}: a tensor has one size only; give the picture")
            yield picture
            return
        if preprocess is None:
            raise ConfigError("preprocess: say how a picture becomes input")
        for scale in self.scales:
            yield preprocess.scaled(scale).transform()(picture)

    def _merged(self, found: Sequence[Detections]) -> Detections:
        """Join what views saw: of boxes on one object the best, with its own mask."""
        from metaformer.detection.suppression import keep

        boxes, scores, labels = (
            torch.cat([getattr(one, part) for one in found]) for part in ("boxes", "scores", "labels")
        )
        masks = (
            None
            if found[0].masks is None
            else torch.cat([one.masks for one in found if one.masks is not None])
        )
        kept = keep(boxes, scores, labels, self.nms_threshold, self.max_detections)
        return Detections(boxes[kept], scores[kept], labels[kept], None if masks is None else masks[kept])


def _seen(forward: DetectForward, image: Tensor, size: Size, mirrored: bool, name: str | Path) -> Detections:
    """What one view shows, in the frame of the picture."""
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
