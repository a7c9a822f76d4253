"""Segmentation results: values, drawings and the report."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.config import TrainConfig
from metaformer.report.blocks import Examples, Matrix, Table
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.draw import (
    annotate,
    boundaries,
    colored,
    deepest_points,
    legend,
    name_regions,
    overlay,
)
from metaformer.tasks.segmentation.metrics import figures
from metaformer.tasks.segmentation.report import build_report
from metaformer.tasks.segmentation.results import (
    IGNORED,
    Segmentation,
    SegmentationReport,
    SegmentExample,
    areas,
    paletted,
    thumbnail,
)
from metaformer.training.report import write_report
from metaformer.training.train import train
from metaformer.visualize.canvas import PANEL, upscale_factor
from toys import Configure

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
LABELS = np.array([[0, 0, 0, 2], [2, 2, 2, 2]], dtype=np.uint8)


def report(classes: int = 3) -> SegmentationReport:
    confusion = torch.eye(classes, dtype=torch.int64) * 1000
    confusion[0, 1], confusion[2] = 250, 0
    examples = (SegmentExample("a.png", 4, 0.5, "AAAA", "BBBB", (0, 1)),)
    found = figures(confusion, [f"c{i}" for i in range(classes)])
    return SegmentationReport(7, found, confusion, tuple((i % 256, 0, 0) for i in range(classes)), examples)


def test_segmentation() -> None:
    result = Segmentation("x.png", LABELS, ("ant", "bee", "cat"), COLORS)
    assert result.size == (4, 2) and result.shares == ((2, 5 / 8), (0, 3 / 8))
    assert result.to_dict() == {
        "path": "x.png", "width": 4, "height": 2, "classes": {"cat": 5 / 8, "ant": 3 / 8}
    }  # fmt: skip
    assert list(result.to_dict()["classes"]) == ["cat", "ant"]
    assert np.array_equal(np.asarray(result.image()), LABELS)


def test_areas_are_counted_largest_first() -> None:
    assert areas(np.array([[5, 5, 255, 255, 3]], dtype=np.uint16)) == {5: 2, 255: 2, 3: 1}
    assert list(areas(np.array([[5, 5, 255, 255, 3]]))) == [5, 255, 3]
    big = np.repeat(np.arange(3, dtype=np.uint8), [700_000, 900_000, 800_000]).reshape(2, -1)
    assert list(areas(big).items()) == [(1, 900_000), (2, 800_000), (0, 700_000)]


def test_palette_images() -> None:
    image = paletted(np.array([[0, 2], [255, 1]], dtype=np.uint8), COLORS)
    assert image.mode == "P" and np.asarray(image).tolist() == [[0, 2], [255, 1]]
    colors = np.asarray(image.convert("RGB"))
    assert colors.tolist() == [[[255, 0, 0], [0, 0, 255]], [list(IGNORED), [0, 255, 0]]]


def test_more_than_255_classes_are_rgb_images() -> None:
    palette = tuple((i % 256, i // 256, 7) for i in range(300))
    image = paletted(np.array([[299, 65535]], dtype=np.uint16), palette)
    assert image.mode == "RGB" and np.asarray(image).tolist() == [[[43, 1, 7], list(IGNORED)]]


def test_thumbnails_are_not_interpolated() -> None:
    label_map = np.repeat(np.array([[0, 1, 2, 255]], dtype=np.uint8), 300, axis=1).repeat(40, axis=0)
    small = Image.open(io.BytesIO(base64.b64decode(thumbnail(label_map, COLORS))))
    assert small.size == (256, 9) and small.mode == "P"
    assert np.asarray(small)[4, 32::64].tolist() == [0, 1, 2, 255]
    whole = Image.open(io.BytesIO(base64.b64decode(thumbnail(LABELS, COLORS))))
    assert np.array_equal(np.asarray(whole), LABELS)
    long = Image.open(io.BytesIO(base64.b64decode(thumbnail(np.zeros((1, 5000), int), COLORS))))
    assert long.size == (256, 1)


def test_report_as_json(tmp_path: Path) -> None:
    values = json.loads(report().save(tmp_path / "x" / "report.json").read_text())
    assert values["images"] == 7 and values["pixels"] == 2250
    assert values["miou"] == (1000 / 1250 + 1000 / 1250) / 2
    assert values["aacc"] == 2000 / 2250 and values["macc"] == (1000 / 1250 + 1) / 2
    assert values["confusion"] == [[1000, 250, 0], [0, 1000, 0], [0, 0, 0]]
    assert values["classes"] == ["c0", "c1", "c2"] and values["palette"][1] == [1, 0, 0]
    assert values["per_class"][2] == {
        "name": "c2", "pixels": 0, "correct": 0, "predicted": 0,
        "iou": None, "accuracy": None, "precision": None,
    }  # fmt: skip
    assert values["examples"][0]["labels"] == [0, 1] and values["examples"][0]["truth"] == "AAAA"


def test_report_of_many_classes_holds_nonzero_confusions() -> None:
    values = report(300).to_dict()
    assert "confusion" not in values and [0, 1, 250] in values["confusion_entries"]


def test_report_as_text_begins_with_the_weakest_class() -> None:
    text = report(30).text(rows=3)
    lines = text.splitlines()
    assert lines[:2] == ["images   7", "mIoU     98.62%"]
    assert lines[6].split() == ["c0", "1,250", "80.00%", "80.00%", "100.00%"]
    assert "26 classes that do better" in text and "1 classes neither occur nor are predicted" in text


DRAWN_RED, DRAWN_BLUE = (200, 0, 0), (0, 0, 200)
PALETTE = ((0, 0, 0), DRAWN_RED, DRAWN_BLUE)


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


def test_regions_carry_their_names_and_colors() -> None:
    """Two regions of one class and one of another, on a ground that is not painted."""
    label_map = np.zeros((120, 240), np.uint8)
    label_map[20:100, 20:80] = label_map[20:100, 160:220] = 1
    label_map[50:60, 100:140] = 2
    plain = Image.new("RGB", (240, 120), (90, 90, 90))
    drawn = plain.copy()
    name_regions(drawn, label_map, ("ground", "leaf", "stem"), PALETTE)
    pixels = np.asarray(drawn)
    for middle in (50, 190):
        name = pixels[50:70, middle - 20 : middle + 20]
        assert (name == DRAWN_RED).all(axis=2).mean() > 0.3 and (name > 200).all(axis=2).any(), middle
    assert (pixels[20:100, 20] == DRAWN_RED).all() and (pixels[50, 100:140] == DRAWN_BLUE).all()  # outlines
    assert (pixels[:15] == 90).all() and [len(list(deepest_points(label_map == k))) for k in (1, 2, 3)] == [
        2,
        1,
        0,
    ]


def test_thin_regions_have_an_outline_alone() -> None:
    label_map = np.zeros((100, 100), np.uint8)
    label_map[40:43] = 1
    drawn = Image.new("RGB", (100, 100), (90, 90, 90))
    name_regions(drawn, label_map, ("ground", "wire"), PALETTE)
    assert (np.asarray(drawn)[[30, 50]] == 90).all() and (np.asarray(drawn)[40] == DRAWN_RED).all()


def test_label_map_in_colors() -> None:
    painted = np.asarray(colored(np.array([[0, 1, 255]], np.uint8), PALETTE))
    assert painted[0].tolist() == [[0, 0, 0], list(DRAWN_RED), [128, 128, 128]]


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
    entries = [(f"class {i}", DRAWN_RED, 0.01) for i in range(100)]
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


def test_report_shows_images_ground_truth_and_predictions(
    configure_segment: Configure, patches: Path, tmp_path: Path
) -> None:
    root = tmp_path / "patches"
    shutil.copytree(patches, root)
    run = train(configure_segment(data={"root": str(root)}), tmp_path / "run").run
    text = (run / "report.html").read_text()
    assert [text.count(f'alt="{word}"') for word in ("image", "ground truth", "prediction")] == [5, 5, 5]
    assert text.count("<svg") == 3 and ">validation</" not in text  # the losses have one line only
    best = json.loads((run / "best" / "state.json").read_text())
    assert f"{best['metrics']['miou']:.2%}" in text and "validation mIoU" in text
    assert "metaformer predict" in text and "cat_max_ratio" in text and "distill" not in text
    shutil.rmtree(root)  # without the data, label maps are drawn alone
    text = write_report(run).read_text()
    assert [text.count(f'alt="{word}"') for word in ("image", "ground truth", "prediction")] == [0, 5, 5]
    assert text.count(">gone<") == 5


def state_of(
    classes: int, confusion: torch.Tensor, examples: tuple[SegmentExample, ...] = ()
) -> dict[str, Any]:
    names = ["<b>", *(f"class {i}" for i in range(1, classes))]
    palette = tuple((i % 256, 7, 9) for i in range(classes))
    built = SegmentationReport(len(examples), figures(confusion, names), confusion, palette, examples)
    preprocess = {"long_side": 2048, "short_side": 512, "size_divisor": 32}
    card = {"task": "segment", "name": "net", "classes": names, "preprocess": preprocess}
    return {
        "card": card, "evaluation": json.loads(json.dumps(built.to_dict())), "metrics": built.metrics,
        "metric": "miou", "step": 1200,
    }  # fmt: skip


def test_classes_are_listed_by_iou() -> None:
    built = build_report(state_of(3, torch.tensor([[90, 10, 0], [60, 40, 0], [0, 0, 0]])), TrainConfig())
    images, classes, confusion = built.sections
    (table,), (matrix,) = classes.blocks, confusion.blocks
    assert isinstance(table, Table) and isinstance(matrix, Matrix) and not images.blocks
    assert [(row.cells[0], row.cells[2]) for row in table.rows] == [("class 1", "36.4%"), ("<b>", "56.2%")]
    assert table.rows[0].color == "rgb(1 7 9)" and classes.note.startswith("1 classes are neither present")
    assert [cell.text for cell in matrix.rows[1]] == ["60", "40", ""]
    assert built.preprocess.startswith("images fitted into 2048×512")


def test_a_report_shows_the_colors_of_its_legend(tmp_path: Path) -> None:
    """On a bright green image: the hue of a painted region is its legend's, not a mixture."""
    Image.new("RGB", (64, 64), (60, 230, 60)).save(tmp_path / "1.png")
    png = thumbnail(np.ones((64, 64), np.uint8), ((0, 0, 0), (200, 0, 0)))
    example = SegmentExample(str(tmp_path / "1.png"), 0, 1.0, png, png, (0, 1))
    values = state_of(2, torch.ones(2, 2).long(), (example,))
    values["evaluation"]["palette"] = [[0, 0, 0], [200, 0, 0]]
    worst, *_ = build_report(values, TrainConfig()).sections[0].blocks
    assert isinstance(worst, Examples)
    (shown,) = worst.examples
    assert shown.legend == [("<b> (not painted)", "transparent"), ("class 1", "rgb(200 0 0)")]
    data = str(shown.panels["prediction"]).partition(",")[2]
    red, green, blue = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[20, 20].astype(int)
    assert abs(green - blue) < 8 and red > green + 100


@pytest.mark.parametrize("classes", [4, 300])
def test_examples_have_panels_and_a_legend(classes: int, tmp_path: Path) -> None:
    palette = tuple((i % 256, 7, 9) for i in range(classes))
    truth = np.array([[0, 1, 255 if classes < 256 else 299]] * 2, np.uint16 if classes > 255 else np.uint8)
    png = thumbnail(truth, palette)
    examples = tuple(
        SegmentExample(str(tmp_path / f"{i}.png"), i, i / 10, png, png, tuple(range(classes))[:12])
        for i in (1, 0)
    )
    found = build_report(state_of(classes, torch.ones(classes, classes).long(), examples), TrainConfig())
    worst, _ = found.sections[0].blocks
    assert isinstance(worst, Examples)
    (first,) = worst.examples
    assert (first.value, first.text, first.panels["image"]) == ("0.0%", "mIoU", None)
    assert str(first.panels["ground truth"]).startswith("data:image/jpeg;base64,")
    assert len(first.legend) == min(classes, 10) and first.more == (2 if classes > 10 else 0)
