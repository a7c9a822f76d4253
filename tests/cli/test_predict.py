import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.checkpoint.checkpoint import write_checkpoint
from metaformer.cli import main
from metaformer.config import TrainConfig
from metaformer.factory import create_detector, create_model, create_segmenter
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.serialize import to_dict
from metaformer.weights.hub import save_pretrained

CLASSES = ["sky", "sea", "land"]
TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a run of segmentation writes it, with random weights."""
    backbone = create_model("poolformer_n", **TINY).config
    model = create_segmenter("semantic_fpn", backbone=backbone, num_classes=3, fpn_dim=16, head_dim=16)
    assert isinstance(model.config, SegmenterConfig)
    card = {
        "task": "segment",
        "name": "net",
        "model": model.config.to_dict(),
        "classes": CLASSES,
        "palette": [[0, 0, 200], [0, 120, 120], [120, 60, 0]],
        "preprocess": {"long_side": 128, "short_side": 64, "size_divisor": 32},
    }
    place = tmp_path_factory.mktemp("net") / "best"
    write_checkpoint(
        place, {"model": model.state_dict()}, {"card": card, "config": to_dict(TrainConfig(task="segment"))}
    )
    return place


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a run of detection writes it, with random weights, which see objects everywhere."""
    backbone = create_model("poolformer_n", **TINY).config
    sizes = {"fpn_dim": 16, "box_fc_dim": 16, "max_detections": 5}
    model = create_detector("mask_rcnn", backbone=backbone, num_classes=3, **sizes)
    card = {
        "task": "detect",
        "name": "net",
        "model": model.config.to_dict(),
        "classes": CLASSES,
        "category_ids": [1, 17, 90],
        "preprocess": {"long_side": 128, "short_side": 64},
    }
    place = tmp_path_factory.mktemp("detector") / "best"
    write_checkpoint(
        place, {"model": model.state_dict()}, {"card": card, "config": to_dict(TrainConfig(task="detect"))}
    )
    return place


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("classifier")
    save_pretrained(create_model("poolformer_n", num_classes=3, **TINY), place)
    return place


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of one name, and an animation."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.RandomState(0)
    for name, size in (("a/x.png", (40, 30)), ("b/x.jpg", (33, 65))):
        (root / name).parent.mkdir()
        Image.fromarray(draw.randint(0, 255, (size[1], size[0], 3), np.uint8)).save(root / name)
    frames = [Image.fromarray(draw.randint(0, 255, (20, 24, 3), np.uint8)) for _ in range(3)]
    frames[0].save(root / "clip.gif", save_all=True, append_images=frames[1:], duration=80)
    return root


def test_label_maps_and_all_beside_them(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--images", "--panoptic", "--rle", "--scales", "0.5,1", "--flip"]
    assert main(["predict", str(segmenter), str(photos), "--out", str(tmp_path / "out"), *options]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "5 label maps", "5 annotated images", "5 panoptic images", "5 images in run lengths",
    ]  # fmt: skip
    names = ["x", "x_2", "clip_000000", "clip_000001", "clip_000002"]
    assert sorted(file.stem for file in (tmp_path / "out" / "masks").iterdir()) == sorted(names)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["width"], line["height"], line.get("frame")) for line in lines] == [
        (40, 30, None), (33, 65, None), (24, 20, 0), (24, 20, 1), (24, 20, 2),
    ]  # fmt: skip
    with Image.open(tmp_path / "out" / "masks" / "x_2.png") as mask:
        assert mask.mode == "P" and mask.size == (33, 65) and np.asarray(mask).max() < 3
    with Image.open(tmp_path / "out" / "images" / "clip.webp") as clip:
        assert clip.n_frames == 3  # type: ignore[attr-defined]


def test_without_out_lines_are_printed(
    segmenter: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(segmenter), f"{photos}/a/x.png", "--slide", "64"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert sum(json.loads(line)["classes"].values()) == pytest.approx(1) and "mask" not in line


def test_a_submission_is_a_zip(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    words = ["predict", str(segmenter), f"{photos}/a", "--out", str(tmp_path), "--submission", "ade20k"]
    assert main(words) == 0 and (tmp_path / "submission_ade20k.zip").is_file()
    assert main([*words[:2], str(photos), *words[3:]]) == 1  # two images of one name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--top-k 5", "top_k: net tells classes of pixels apart"),
        ("--crops 5", "crops: net tells classes of pixels apart"),
        ("--image-size 64", "image_size: "),
        ("--scales 1,x", "--scales '1,x': write numbers"),
        ("--scales 0", "scales"),
        ("--images", "--images needs --out"),
        ("--rle", "--rle needs --out"),
        ("--out OUT.csv", "label maps need a folder"),
        ("--out OUT --fps 5", "fps: joins drawn images"),
        ("--out OUT --submission voc", "invalid choice: 'voc'"),
    ],
)
def test_what_does_not_fit_segmentation_is_told(
    words: str, told: str, segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words.replace("OUT", str(tmp_path / "out")).split()
    assert main(["predict", str(segmenter), f"{photos}/a", *asked]) in (1, 2)
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_objects_and_all_beside_them(
    detector: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--images", "--coco", "--score", "0", "--scales", "0.5,1", "--flip"]
    assert main(["predict", str(detector), str(photos), "--out", str(tmp_path / "out"), *options]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "5 images", "5 annotated images", "5 images for COCO",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["width"], line["height"], line.get("frame")) for line in lines] == [
        (40, 30, None), (33, 65, None), (24, 20, 0), (24, 20, 1), (24, 20, 2),
    ]  # fmt: skip
    rows = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert len(rows) == sum(len(line["objects"]) for line in lines) > 0
    sizes = {line["image_id"]: [line["height"], line["width"]] for line in lines}
    assert len(sizes) == 5 and {row["category_id"] for row in rows} <= {1, 17, 90}
    assert all(row["segmentation"]["size"] == sizes[row["image_id"]] for row in rows)
    drawn = {file.name for file in (tmp_path / "out" / "images").iterdir()}
    assert {"x.jpg", "x_2.jpg", "clip.webp"} <= drawn


def test_objects_are_printed_without_out_and_chosen_by_score_and_class(
    detector: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for options in (["--score=0"], ["--score=0", "--only=sea,land"], ["--score=1"], []):
        assert main(["predict", str(detector), f"{photos}/a/x.png", "--device=cpu", *options]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        found.append(json.loads(line)["objects"])
    assert 1 <= len(found[0]) <= 5 and not found[2]
    assert found[1] == [one for one in found[0] if one["name"] != "sky"]
    assert found[3] == [one for one in found[0] if one["score"] >= 0.3]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--top-k 5", "top_k: net finds objects"),
        ("--crops 5", "crops: net finds objects"),
        ("--slide 64", "slide: net finds objects"),
        ("--image-size 64", "image_size: "),
        ("--out OUT --panoptic", "--panoptic: net finds objects"),
        ("--out OUT --rle", "--rle: net finds objects"),
        ("--out OUT --submission ade20k", "--submission: net finds objects"),
        ("--score 1.5", "score is 1.5: it must lie between 0 and 1"),
        ("--score much", "argument --score: invalid float value: 'much'"),
        ("--only sky,see", "unknown class 'see': did you mean sea"),
        ("--coco", "--coco needs --out"),
        ("--out OUT.json", "objects are written to a folder"),
        ("--out OUT --fps 5", "fps: joins drawn images"),
    ],
)
def test_what_does_not_fit_detection_is_told(
    words: str, told: str, detector: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words.replace("OUT", str(tmp_path / "out")).split()
    assert main(["predict", str(detector), f"{photos}/a", *asked]) in (1, 2)
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--coco", "--score=0.5", "--only=sky"])
def test_options_of_detection_do_not_fit_segmentation(
    option: str, segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(segmenter), f"{photos}/a", "--out", str(tmp_path / "out"), option]) == 1
    error = capsys.readouterr().err
    assert option.partition("=")[0].lstrip("-") in error and "classes of pixels apart" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option",
    [
        "--panoptic",
        "--rle",
        "--submission=ade20k",
        "--fps=5",
        "--scales=1",
        "--slide=9",
        "--coco",
        "--score=0.5",
        "--only=sky",
    ],
)
def test_what_does_not_fit_classification_is_told(
    option: str, classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(classifier), f"{photos}/a", "--out", str(tmp_path / "out"), option]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert option.partition("=")[0].lstrip("-") in error and "classes of images apart" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", ["segmenter", "detector"])
def test_a_whole_data_set_is_for_classification(
    network: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    place = str(request.getfixturevalue(network))
    words = ["predict", place, "--data", str(photos), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--data is for classification" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_the_optimized_network_says_the_same(
    kind: str, photos: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for options in ([], ["--optimize"]):
        source = request.getfixturevalue(kind)
        assert main(["predict", str(source), f"{photos}/a/x.png", "--device=cpu", *options]) == 0
        found.append(json.loads(capsys.readouterr().out, parse_float=lambda number: round(float(number), 3)))
    assert found[0] == found[1]


def test_optimizing_leaves_no_room_for_mixed_precision(
    classifier: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(classifier), str(photos), "--optimize", "--amp", "bf16"]) != 0
    assert "leave --amp out" in capsys.readouterr().err
