"""Detection with test-time augmentation, and the predictor of images and videos."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.errors import ConfigError, MetaFormerError, TrainingError, UnknownName
from metaformer.factory import create_detector, model_config
from metaformer.models.detection.structures import Detections, Size
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.detection.predict import DetectInference, DetectionPredictor
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.detection.spec import SPEC, DetectionMetadata, read_score
from metaformer.tasks.detection.transforms import DetectionPreprocess
from metaformer.tasks.stream import ImageList

PLAIN = DetectionPreprocess(None, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
COLORS = ("red", "green", "blue")
Make = Callable[..., DetectionPredictor]


class Brightest(nn.Module):
    """Boxes around what is bright in each color channel, with scores 0.9, 0.6 and 0.3.

    Masks grow brighter to the right of the input.
    """

    num_classes = 3

    def forward(
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
            masks = torch.linspace(0, 1, 28).expand(len(labels), 28, 28)
            results.append(Detections(corners, scores, torch.tensor(labels, dtype=torch.int64), masks))
        return results


@pytest.fixture
def image() -> Image.Image:
    """40 pixels wide and 30 tall, with a blue box on the left."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[6:18, 4:20, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("scales", [(1.0,), (2.0,), (0.5,)])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_views_are_in_the_images_pixels(
    scales: tuple[float, ...], flip: bool, image: Image.Image
) -> None:
    found = DetectInference(scales=scales, flip=flip).detections(Brightest(), image, PLAIN)
    assert found.labels.tolist() == [2]
    assert found.boxes[0].tolist() == pytest.approx([4, 6, 20, 18], abs=1.5)


def test_masks_of_a_mirrored_view_are_flipped_back(image: Image.Image) -> None:
    found = DetectInference(flip=True, nms_threshold=1.0).detections(Brightest(), image, PLAIN)
    assert found.masks is not None and len(found) == 2
    assert torch.equal(found.masks[0], found.masks[1].flip(-1))


def test_an_object_of_all_views_is_detected_once(image: Image.Image) -> None:
    found = DetectInference(scales=(1.0, 2.0, 3.0), flip=True).detections(Brightest(), image, PLAIN)
    assert len(found) == 1


def test_max_detections(image: Image.Image) -> None:
    many = DetectInference(scales=(1.0, 2.0), flip=True, nms_threshold=1.0, max_detections=3)
    assert len(many.detections(Brightest(), image, PLAIN)) == 3


def test_a_tensor_needs_no_preprocessing() -> None:
    image = torch.zeros(3, 20, 30)
    image[2, 5:10, 3:9] = 1.0
    found = DetectInference().detections(Brightest(), image, original_size=(40, 60))
    assert found.boxes.tolist() == [[6, 10, 18, 20]]
    with pytest.raises(ConfigError, match="a tensor has one size"):
        DetectInference(scales=(1.0, 2.0)).detections(Brightest(), image)


def test_outputs_that_are_not_finite_name_the_image(image: Image.Image) -> None:
    def broken(images: Tensor, *sizes: Sequence[Size]) -> list[Detections]:
        return [Detections(torch.zeros(1, 4), torch.tensor([torch.nan]), torch.tensor([0]))]

    with pytest.raises(MetaFormerError, match=r"a\.jpg: .*finite"):
        DetectInference().detections(broken, image, PLAIN, name="a.jpg")


@pytest.mark.parametrize("scales", [(), (0.0,), (float("nan"),)])
def test_wrong_scales_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="scales"):
        DetectInference(scales=scales)


@pytest.fixture
def detector() -> Make:
    def make(
        model: nn.Module | None = None, chosen: float | None = None, **options: Any
    ) -> DetectionPredictor:
        preprocess = DetectionPreprocess(64, 32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        metadata = DetectionMetadata(((255, 0, 0), (0, 255, 0), (0, 0, 255)), (1, 2, 3), chosen)
        spec = SPEC if model is not None else replace(SPEC, forward=lambda network: network)
        loaded = LoadedModel(spec, "net", model or Brightest(), preprocess, COLORS, metadata)
        return DetectionPredictor(loaded, **options)

    return make


def stripes(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def objects_in(image: Image.Image, detector: DetectionPredictor) -> DetectedObjects:
    (prediction,) = detector.predict(ImageList(image))
    assert prediction.image is not None and prediction.frame is None
    return prediction.result


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [(64, 48), (200, 96), (30, 300)])
def test_boxes_are_in_the_images_own_pixels(size: tuple[int, int], workers: int, detector: Make) -> None:
    width, height = size
    objects = objects_in(stripes(*size), detector(workers=workers))
    assert (objects.path, objects.size, objects.names) == ("", size, ["red", "blue"])
    middle = width / 2
    np.testing.assert_allclose(
        objects.boxes, [[0, 0, middle, height], [middle, 0, width, height]], atol=width / 16
    )
    assert objects.classes == COLORS and objects.palette[2] == (0, 0, 255)


def test_an_image_of_one_pixel(detector: Make) -> None:
    objects = objects_in(Image.new("RGB", (1, 1), (0, 255, 0)), detector())
    assert objects.names == ["green"] and objects.boxes.tolist() == [[0, 0, 1, 1]]


def test_drawings_begin_at_the_given_the_chosen_or_the_default_score(detector: Make) -> None:
    image = stripes(64, 48)  # red has a score of 0.9, blue 0.3
    found = objects_in(image, detector(chosen=0.5))
    assert found.names == ["red", "blue"] and found.shown(0.5).names == ["red"]
    given = objects_in(image, detector(chosen=0.5, score=0.1))
    assert given.names == given.shown(0.5).names == ["red", "blue"]
    assert detector(chosen=0.2).score == 0.2 and detector(chosen=0.5).score == detector().score == 0.3
    assert objects_in(image, detector()).shown(0.5).names == ["red", "blue"]


def test_boxes_of_several_classes_are_suppressed_on_request(detector: Make) -> None:
    """White is bright in every channel: three classes in one place."""
    white = Image.new("RGB", (40, 30), (255, 255, 255))
    assert objects_in(white, detector()).names == ["red", "green", "blue"]
    alone = objects_in(white, detector(class_agnostic_nms=True))
    assert alone.names == ["red"] and alone.masks is not None and len(alone.masks) == 1
    assert objects_in(white, detector(class_agnostic_nms=True, classes=["blue", "green"])).names == ["green"]
    assert detector(class_agnostic_nms=True).settings != detector().settings, "so that results are not mixed"


@pytest.mark.parametrize("score", ["0.5", True, -0.1, 2, float("nan"), [0.5]])
def test_a_damaged_score_of_a_checkpoint_is_named(score: Any) -> None:
    with pytest.raises(ConfigError, match=r"score: .* must be a number"):
        read_score(score)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"score": -0.1}, ConfigError, r"score\b.*-0\.1"),
        ({"score": 1.5}, ConfigError, r"score\b.*1\.5"),
        ({"score": float("nan")}, ConfigError, r"score\b.*nan"),
        ({"classes": ["red", "bleu"]}, UnknownName, "'bleu': did you mean blue"),
    ],
)
def test_wrong_options_are_named(
    detector: Make, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        detector(**options)


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("part", ["backbone.stem", "neck", ""])
def test_weights_that_are_not_finite_name_the_frame(
    kind: str, part: str, detector: Make, tmp_path: Path
) -> None:
    """Without a check the image would seem empty: no NaN lies above the score threshold."""
    backbone = model_config("poolformer_n", depths=(1,) * 4, dims=(8, 8, 16, 16), grid_mode="interpolate")
    sizes = {"num_classes": 3, "fpn_dim": 8, "box_fc_dim": 8}
    network = create_detector(kind, backbone=backbone, **sizes).eval()  # type: ignore[arg-type]
    broken = network.get_submodule(part or {"retinanet": "head", "mask_rcnn": "box_head"}[kind])
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    stripes(24, 16).save(tmp_path / "m.gif", save_all=True, append_images=[stripes(24, 16).rotate(180)])
    with pytest.raises(TrainingError, match=r"m\.gif, frame 0: .*not finite"):
        list(detector(network).predict(ImageList(tmp_path)))
