"""Views of an image: what each shows comes back into the image's own frame, and is told once."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metaformer.errors import ConfigError, MetaFormerError
from metaformer.models.detection.structures import Detections, Size
from metaformer.tasks.detection.predict import DetectInference
from metaformer.tasks.detection.preprocess import DetectionPreprocess

PLAIN = DetectionPreprocess(None, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def brightest(
    images: Tensor, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
) -> list[Detections]:
    """Finds the box around all that is bright; its mask grows brighter to the right of the input."""
    results = []
    for image, (height, width), (full_height, full_width) in zip(
        images, image_sizes, original_sizes, strict=True
    ):
        rows, columns = (image[0, :height, :width] > 0.5).nonzero(as_tuple=True)
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        factors = torch.tensor([full_width / width, full_height / height]).repeat(2)
        box = torch.tensor([[float(side) for side in corners]]) * factors
        mask = torch.linspace(0, 1, 28).expand(1, 28, 28)
        results.append(Detections(box, torch.tensor([0.9]), torch.tensor([2]), mask))
    return results


@pytest.fixture
def image() -> Image.Image:
    """40 pixels wide and 30 tall, with a bright box on the left."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[6:18, 4:20] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("scales", [(1.0,), (2.0,), (0.5,)])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_in_the_images_pixels(scales: tuple[float, ...], flip: bool, image: Image.Image) -> None:
    found = DetectInference(scales=scales, flip=flip).detections(brightest, image, PLAIN)
    assert found.labels.tolist() == [2]
    assert found.boxes[0].tolist() == pytest.approx([4, 6, 20, 18], abs=1.5)


def test_masks_of_a_mirrored_view_are_turned_back(image: Image.Image) -> None:
    found = DetectInference(flip=True, nms_threshold=1.0).detections(brightest, image, PLAIN)
    assert found.masks is not None and len(found) == 2
    assert torch.equal(found.masks[0], found.masks[1].flip(-1))


def test_an_object_that_all_views_show_is_told_once(image: Image.Image) -> None:
    found = DetectInference(scales=(1.0, 2.0, 3.0), flip=True).detections(brightest, image, PLAIN)
    assert len(found) == 1


def test_no_more_are_told_than_asked_for(image: Image.Image) -> None:
    many = DetectInference(scales=(1.0, 2.0), flip=True, nms_threshold=1.0, max_detections=3)
    assert len(many.detections(brightest, image, PLAIN)) == 3


def test_a_tensor_is_looked_at_as_it_is() -> None:
    image = torch.zeros(3, 20, 30)
    image[:, 5:10, 3:9] = 1.0
    found = DetectInference().detections(brightest, image, original_size=(40, 60))
    assert found.boxes.tolist() == [[6, 10, 18, 20]]
    with pytest.raises(ConfigError, match="a tensor has one size"):
        DetectInference(scales=(1.0, 2.0)).detections(brightest, image)


def test_what_is_not_finite_names_the_image(image: Image.Image) -> None:
    def broken(images: Tensor, *sizes: Sequence[Size]) -> list[Detections]:
        return [Detections(torch.zeros(1, 4), torch.tensor([torch.nan]), torch.tensor([0]))]

    with pytest.raises(MetaFormerError, match=r"a\.jpg: .*finite"):
        DetectInference().detections(broken, image, PLAIN, name="a.jpg")


@pytest.mark.parametrize("scales", [(), (0.0,), (float("nan"),)])
def test_scales_that_cannot_be(scales: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="scales"):
        DetectInference(scales=scales)
