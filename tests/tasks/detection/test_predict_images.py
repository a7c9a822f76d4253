from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.errors import ConfigError, TrainingError, UnknownName
from metaformer.factory import create_detector, model_config
from metaformer.models.detection.structures import Detections, Size
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.detection.predict import DetectInference, ImageDetector
from metaformer.tasks.detection.preprocess import DetectionPreprocess
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.stream import ImageList

COLORS = ("red", "green", "blue")
Make = Callable[..., ImageDetector]


class Brightest(nn.Module):
    """Finds of each color the box around what is bright in it; the surer, the earlier the color."""

    num_classes = 3

    def detect(
        self, images: Tensor, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        results = []
        for image, (height, width), (tall, wide) in zip(images, image_sizes, original_sizes, strict=True):
            boxes, labels = [], []
            for label, channel in enumerate(image[:, :height, :width]):
                rows, columns = (channel > 0.5).nonzero(as_tuple=True)
                if len(rows):
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    labels.append(label)
            factors = torch.tensor([wide / width, tall / height]).repeat(2)
            scores = torch.tensor([(0.9, 0.6, 0.3)[label] for label in labels])
            corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) * factors
            results.append(Detections(corners, scores, torch.tensor(labels, dtype=torch.int64)))
        return results


@pytest.fixture
def detector() -> Make:
    def make(model: nn.Module | None = None, inference: DetectInference | None = None, **options: Any) -> Any:
        preprocess = DetectionPreprocess(64, 32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
        bundle = LoadedModel("net", model or Brightest(), preprocess, COLORS, "detect", palette)
        chosen = inference or DetectInference()
        return ImageDetector(bundle.forward, preprocess, COLORS, palette, chosen, **options)

    return make


def stripes(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def objects_of(detector: ImageDetector, *images: Image.Image) -> list[DetectedObjects]:
    found = [seen.result for seen in detector.stream(ImageList(list(images)))]
    assert all(isinstance(one, DetectedObjects) for one in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [(64, 48), (200, 96), (30, 300)])
def test_boxes_are_in_the_images_own_pixels(size: tuple[int, int], workers: int, detector: Make) -> None:
    width, height = size
    (objects,) = objects_of(detector(workers=workers), stripes(*size))
    assert (objects.path, objects.size, objects.names) == ("", size, ["red", "blue"])
    middle = width / 2
    np.testing.assert_allclose(
        objects.boxes, [[0, 0, middle, height], [middle, 0, width, height]], atol=width / 16
    )
    assert objects.classes == COLORS and objects.palette[2] == (0, 0, 255)


def test_an_image_of_one_pixel_has_room_for_an_object(detector: Make) -> None:
    (objects,) = objects_of(detector(), Image.new("RGB", (1, 1), (0, 255, 0)))
    assert objects.names == ["green"] and objects.boxes.tolist() == [[0, 0, 1, 1]]


def test_frames_of_an_animation_are_results_of_their_own(detector: Make, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (24, 16), color) for color in ((255, 0, 0), (0, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:], duration=30)
    stripes(40, 30).save(tmp_path / "a.png")
    found = list(detector(workers=1).stream(ImageList(tmp_path)))
    assert [(Path(one.result.path).name, one.frame, one.result.names) for one in found] == [
        ("a.png", None, ["red", "blue"]), ("m.gif", 0, ["red"]), ("m.gif", 1, []), ("m.gif", 2, ["blue"]),
    ]  # fmt: skip
    assert found[3].milliseconds == 30 and found[3].result.size == (24, 16)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["red", "blue"]),
        ({"score": 0.5}, ["red"]),
        ({"score": 1.0}, []),
        ({"only": ["blue", "green"]}, ["blue"]),
        ({"only": ["blue"], "score": 0.5}, []),
        ({"only": []}, []),
    ],
)
def test_only_what_is_asked_for_is_told(detector: Make, options: dict[str, Any], names: list[str]) -> None:
    assert objects_of(detector(**options), stripes(64, 32))[0].names == names


def test_mirrored_and_larger_views_find_an_object_once(detector: Make) -> None:
    views = DetectInference(scales=(0.5, 1.0), flip=True)
    (objects,) = objects_of(detector(inference=views), stripes(64, 32))
    assert objects.names == ["red", "blue"]


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_a_score_that_cannot_be_is_told(detector: Make, score: float) -> None:
    with pytest.raises(ConfigError, match=f"score is {score}: it must lie between 0 and 1"):
        detector(score=score)


def test_an_unknown_class_is_told_before_the_work(detector: Make) -> None:
    with pytest.raises(UnknownName, match="unknown class 'bleu': did you mean blue"):
        detector(only=["red", "bleu"])


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("part", ["backbone.stem", "neck", ""])
def test_weights_that_are_no_numbers_name_the_frame(
    kind: str, part: str, detector: Make, tmp_path: Path
) -> None:
    """No score of such a network lies above a threshold: it would look as if there were nothing."""
    backbone = model_config("poolformer_n", depths=(1,) * 4, dims=(8, 8, 16, 16), grid_mode="interpolate")
    sizes = {"num_classes": 3, "fpn_dim": 8, "box_fc_dim": 8}
    network = create_detector(kind, backbone=backbone, **sizes).eval()  # type: ignore[arg-type]
    broken = network.get_submodule(part or {"retinanet": "head", "mask_rcnn": "box_head"}[kind])
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    stripes(24, 16).save(tmp_path / "m.gif", save_all=True, append_images=[stripes(24, 16).rotate(180)])
    with pytest.raises(TrainingError, match=r"m\.gif, frame 0: .*not finite"):
        list(detector(network).stream(ImageList(tmp_path)))
