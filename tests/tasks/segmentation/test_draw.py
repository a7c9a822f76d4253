from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.draw import annotate, boundaries, colored, legend, overlay
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.visualize.canvas import PANEL, upscale_factor

RED, BLUE = (200, 0, 0), (0, 0, 200)
PALETTE = ((0, 0, 0), RED, BLUE)


def test_class_colors_are_blended_and_boundaries_drawn() -> None:
    image = Image.new("RGB", (6, 2), (100, 100, 100))
    drawn = np.asarray(overlay(image, np.array([[1, 1, 1, 2, 2, 2]] * 2, np.uint8), PALETTE, opacity=0.5))
    assert drawn[0, 0].tolist() == [150, 50, 50] and drawn[0, 5].tolist() == [50, 50, 150]
    assert drawn[0, 2].min() > 180  # the boundary
    assert drawn[:, 3].tolist() == [[50, 50, 150]] * 2


def test_no_class_and_black_classes_show_the_image() -> None:
    image = Image.new("RGB", (40, 1), (100, 110, 120))
    label_map = np.repeat(np.array([0, 255, 1, 3], np.uint8), 10)[None]
    drawn = np.asarray(overlay(image, label_map, PALETTE))
    assert [drawn[0, x].tolist() for x in (5, 15, 35)] == [[100, 110, 120]] * 3
    assert drawn[0, 25].tolist() == [150, 55, 60]


def test_label_map_in_colors() -> None:
    painted = np.asarray(colored(np.array([[0, 1, 255]], np.uint8), PALETTE))
    assert painted[0].tolist() == [[0, 0, 0], list(RED), [128, 128, 128]]


def test_thickness_of_boundaries() -> None:
    label_map = np.zeros((5, 9), np.uint8)
    label_map[:, 4:] = 1
    assert [int((boundaries(label_map, width)[2] > 0).sum()) for width in (1, 2, 3)] == [1, 2, 3]
    assert not boundaries(np.ones((3, 3), np.uint8)).any()


@pytest.mark.parametrize("size", [(1, 1), (128, 128), (31, 500), (2000, 300)])
def test_images_of_any_size_have_a_readable_legend(
    size: tuple[int, int], segmented: Callable[..., Prediction]
) -> None:
    result, image, *_ = segmented(size=size)
    assert image is not None
    drawn = annotate(image, result)
    times = upscale_factor(size, 384)
    assert drawn.width == max(384, size[0] * times)
    below = np.asarray(drawn)[size[1] * times :]
    assert 25 < len(below) < 150
    assert (below == PANEL).all(axis=-1).mean() > 0.5 and below.max() > 200


def test_legend_orders_classes_by_area_or_in_videos_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: list[list[tuple[str, float]]] = []
    monkeypatch.setattr(
        "metaformer.tasks.segmentation.draw.legend",
        lambda classes, width, slots: (
            entries.append([(name, share) for name, _, share in classes]) or legend(classes, width, slots)
        ),
    )
    label_map = np.array([[2, 2, 2, 0]], np.uint8)
    result = Segmentation("", label_map, ("a", "b", "c"), PALETTE)
    annotate(Image.new("RGB", (4, 1)), result)
    annotate(Image.new("RGB", (4, 1)), result, moving=True)
    assert entries == [[("c", 0.75), ("a", 0.25)], [("a", 0.25), ("b", 0.0), ("c", 0.75)]]


def test_legends_are_bounded_and_frames_have_one_size() -> None:
    entries = [(f"class {i}", RED, 0.01) for i in range(100)]
    assert legend(entries, 400).size == legend(entries[:40], 400).size
    assert legend(entries, 400, 12).size == legend(entries[:2], 400, 12).size
    classes = tuple(map(str, range(60)))
    palette = ((9, 9, 9),) * 60
    frames = [
        annotate(Image.new("RGB", (60, 40)), Segmentation("", label_map, classes, palette), moving=True).size
        for label_map in (np.zeros((40, 60), np.uint8), np.tile(np.arange(60, dtype=np.uint8), (40, 1)))
    ]
    assert frames[0] == frames[1]


def test_images_longer_than_jpeg_allows_are_reduced() -> None:
    label_map = np.zeros((2, 70_000), np.uint8)
    label_map[:, 35_000:] = 1
    result = Segmentation("", label_map, ("a", "b"), PALETTE)
    drawn = annotate(Image.new("RGB", (70_000, 2)), result)
    assert drawn.width == 30_000 and drawn.getpixel((20_000, 0)) == (100, 0, 0)
