"""Detection from training to prediction."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.errors import BadImage, DataError
from metaformer.factory import create_detector
from metaformer.inference.evaluate import evaluate
from metaformer.inference.model import load_model
from metaformer.inference.predictor import Predictor
from metaformer.models.detection.config import KINDS
from metaformer.tasks.detection.results import DetectedObjects, DetectionReport
from metaformer.tasks.detection.transforms import DetectionPreprocess
from metaformer.training.train import train
from metaformer.weights.hub import save_pretrained
from toys import Configure, Scene, build_task, log_lines

Scenes = dict[str, list[Scene]]
FIGURES = {"ap", "ap50", "ap75", "ap_small", "ar_100", "mask_ap", "mask_ap50"}
LOSSES = {"loss_cls", "loss_bbox", "loss_rpn_cls", "loss_rpn_bbox", "loss_mask"}
NAMES = ["green", "blue"]


def test_a_run_learns_and_is_evaluated_as_in_training(detect_run: Path) -> None:
    first, *_, last = log_lines(detect_run, "train")
    assert first.keys() >= LOSSES and first["loss"] == pytest.approx(sum(first[name] for name in LOSSES))
    assert last["loss"] < first["loss"] / 2
    *_, evaluated = log_lines(detect_run, "eval")
    assert evaluated.keys() >= FIGURES and min(evaluated["ap50"], evaluated["mask_ap50"]) > 0.75
    report = evaluate(detect_run, device="cpu", workers=0)
    assert isinstance(report, DetectionReport) and report.images == 6 and report.classes == NAMES
    assert report.figures["segm"].objects == 6, "a crowd is none"
    assert report.metrics == json.loads((detect_run / "best" / "state.json").read_text())["metrics"]
    assert (detect_run / "report.html").stat().st_size > 10_000
    metadata = load_model(detect_run).metadata
    assert metadata.category_ids == (3, 7) and metadata.score == report.score
    (found,) = Predictor(detect_run, device="cpu")(Image.new("RGB", (40, 40)))
    assert found.draw_score == report.score


def test_augmented_views_find_the_same_objects(detect_run: Path, blocks: Path) -> None:
    best = json.loads((detect_run / "best" / "state.json").read_text())
    image = blocks / "val2017" / "02.png"
    boxes = [Predictor(detect_run, score=0.0, device="cpu")(image)[0].to_dict()]
    for options in ({"flip": True}, {"scales": [1.0, 1.25]}, {"amp": "bf16"}):
        other = evaluate(detect_run, device="cpu", workers=0, **options)  # type: ignore[arg-type]
        assert other.metrics["ap50"] == pytest.approx(best["metrics"]["ap50"], abs=0.25)
        found = Predictor(detect_run, score=0.0, device="cpu", **options)(image)[0]  # type: ignore[arg-type]
        assert found.to_dict() not in boxes, "but not box for box"
        boxes.append(found.to_dict())


@pytest.mark.parametrize("head", KINDS)
def test_each_head(configure_detect: Configure, blocks: Path, tmp_path: Path, head: str) -> None:
    config = configure_detect(detect={"head": head, "score_threshold": 0.001})
    result = train(config, tmp_path / "run")
    assert result.complete and result.metric == "ap"
    masks = head == "mask_rcnn"
    report = evaluate(tmp_path / "run", device="cpu", workers=0)
    assert set(report.figures) == ({"bbox", "segm"} if masks else {"bbox"})
    (found,) = Predictor(tmp_path / "run", score=0.0, device="cpu")(blocks / "val2017" / "02.png")
    assert isinstance(found, DetectedObjects) and found.size == (38, 44) and len(found) > 0
    assert (found.masks is not None) == masks and set(found.names) <= set(NAMES)
    *_, best = log_lines(tmp_path / "run", "eval")
    assert ("mask_ap" in best) == masks
    assert "box AP" in (tmp_path / "run" / "report.html").read_text()


def test_a_retinanet_learns(configure_detect: Configure, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"head": "retinanet", "anchor_scale": 2.0, "fpn_dim": 32}
    optim, steps = {"lr": 3e-3, "clip": 1.0}, 40
    config = configure_detect(
        detect=plan, optim=optim, schedule={"steps": steps}, evaluate={"every_steps": steps}
    )
    train(config, tmp_path / "run")
    losses = [line["loss"] for line in log_lines(tmp_path / "run", "train")]
    assert np.mean(losses[-4:]) < losses[0] * 0.6, losses


def write_images(root: Path, place: str, scenes: Scenes) -> None:
    """Save all images, in PLACE with `{split}` replaced."""
    for split, images in scenes.items():
        folder = root / place.format(split=split)
        folder.mkdir(parents=True, exist_ok=True)
        for i, (pixels, _) in enumerate(images):
            Image.fromarray(pixels).save(folder / f"{split}_{i:02d}.png")


def write_voc(root: Path, scenes: Scenes) -> None:
    """Pascal VOC's XML counts pixels from 1, the last one included; what is difficult stands for crowds."""
    write_images(root, "JPEGImages", scenes)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(NAMES))
    for split, images in scenes.items():
        names = [f"{split}_{i:02d}" for i in range(len(images))]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name, (pixels, there) in zip(names, images, strict=True):
            size = f"<size><width>{pixels.shape[1]}</width><height>{pixels.shape[0]}</height></size>"
            text = "".join(
                f"<object><name>{NAMES[label]}</name><difficult>{int(crowd)}</difficult><bndbox>"
                f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{left + width}</xmax><ymax>{top + height}</ymax></bndbox></object>"
                for label, (left, top, width, height), crowd in there
            )
            file = root / "Annotations" / f"{name}.xml"
            file.write_text(f"<annotation><filename>{name}.png</filename>{size}{text}</annotation>")


def write_yolo(root: Path, scenes: Scenes, outlines: bool = False) -> None:
    """YOLO's text files, in fractions of the image, without crowds; no file for what shows nothing."""
    write_images(root, "images/{split}", scenes)
    (root / "data.yaml").write_text(f"names: [{', '.join(NAMES)}]\n")
    for split, images in scenes.items():
        (root / "labels" / split).mkdir(parents=True)
        for i, (pixels, there) in enumerate(images):
            lines = []
            for label, (left, top, width, height), crowd in there:
                right, bottom = left + width, top + height
                numbers = [left, top, right, top, right, bottom, left, bottom]
                if not outlines:
                    numbers = [left + width / 2, top + height / 2, width, height]
                shares = [number / pixels.shape[1 - k % 2] for k, number in enumerate(numbers)]
                lines += [] if crowd else [" ".join(map(str, [label, *shares]))]
            if lines:
                (root / "labels" / split / f"{split}_{i:02d}.txt").write_text("\n".join(lines))


Layout = tuple[Callable[[Path, Scenes], None], str, str]
LAYOUTS: dict[str, Layout] = {
    "voc": (write_voc, "JPEGImages", "faster_rcnn"),
    "yolo boxes": (write_yolo, "images/val", "retinanet"),
    "yolo outlines": (lambda root, scenes: write_yolo(root, scenes, True), "images/val", "mask_rcnn"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_trains_the_same(
    configure_detect: Configure, scenes: Scenes, blocks: Path, tmp_path: Path, layout: str
) -> None:
    write, folder, head = LAYOUTS[layout]
    write(tmp_path / "data", scenes)
    plan = {"head": head, "score_threshold": 0.001}
    for name, root in (("coco", blocks), ("other", tmp_path / "data")):
        assert train(configure_detect(data={"root": str(root)}, detect=plan), tmp_path / name).complete
    coco, own = ([line["loss"] for line in log_lines(tmp_path / name, "train")] for name in ("coco", "other"))
    assert own == pytest.approx(coco, rel=1e-6)
    reports = [
        evaluate(tmp_path / name, scales=[1.0, 1.5], flip=True, device="cpu", workers=0)
        for name in ("coco", "other")
    ]
    assert [report.figures["bbox"].objects for report in reports] == [6, 6]
    assert reports[0].classes == reports[1].classes == NAMES
    images = blocks / "val2017" / "02.png", tmp_path / "data" / folder / "val_02.png"
    one, other = (
        Predictor(tmp_path / name, score=0.0, device="cpu")(image)[0]
        for name, image in zip(("coco", "other"), images, strict=True)
    )
    assert isinstance(one, DetectedObjects) and isinstance(other, DetectedObjects) and len(one) > 0
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)


@pytest.fixture
def copied(blocks: Path, tmp_path: Path) -> Path:
    """The blocks again, to be changed."""
    return shutil.copytree(blocks, tmp_path / "copied")


def changed_annotation(root: Path, split: str, place: int, **fields: Any) -> None:
    file = root / "annotations" / f"instances_{split}2017.json"
    document = json.loads(file.read_text())
    document["annotations"][place].update(fields)
    file.write_text(json.dumps(document))


def test_a_few_unusable_objects_and_images_are_skipped(
    configure_detect: Configure, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_annotation(copied, "train", 1, bbox=[3, 4, 10, 0])
    bad = copied / "train2017" / "06.png"
    bad.write_bytes(b"")
    config = configure_detect(data={"root": str(copied), "on_bad_image": "skip"})
    with pytest.raises(DataError, match=r"annotation 2 of 01\.png: bbox .* is 10 wide and 0 high"):
        train(config, tmp_path / "run")  # one of ten is more than 0.1 %
    monkeypatch.setattr("metaformer.tasks.detection.dataset._BAD_SHARE", 0.2)
    with pytest.raises(BadImage, match=r"06\.png"):
        train(config, tmp_path / "run")
    for place in ("data.scan", "training.loop"):
        monkeypatch.setattr(f"metaformer.{place}.BAD_SHARE", 0.1)
    assert train(config, tmp_path / "run").complete
    (line,) = log_lines(tmp_path / "run", "bad_image")
    assert str(bad) in line["note"]
    wanted = replace(config, data=replace(config.data, on_bad_image="error"))
    with pytest.raises(DataError, match="annotation 2"):
        train(wanted, tmp_path / "other")


def test_a_run_clips_boxes_over_the_border(configure_detect: Configure, copied: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        changed_annotation(copied, split, 0, bbox=[2, 2, 100, 16])
    fields = {"data": {"root": str(copied)}, "detect": {"head": "retinanet"}}
    with pytest.raises(DataError, match=r"detect\.clip_boxes"):
        build_task(configure_detect(**fields))
    fields["detect"]["clip_boxes"] = True
    run = train(configure_detect(**fields), tmp_path / "run").run
    notes = [line["note"] for line in log_lines(run, "data") if "is clipped" in line["note"]]
    assert len(notes) == 2 and "annotation 1 of" in notes[0]
    assert evaluate(run, workers=0).images == evaluate(run, copied, workers=0).images == 6


def test_a_folder_without_splits_is_divided_as_a_whole(
    configure_detect: Configure, scenes: Scenes, tmp_path: Path
) -> None:
    root = tmp_path / "flat"
    write_yolo(root, {"train": scenes["train"]})
    for folder in (root / "images", root / "labels"):
        for file in (folder / "train").iterdir():
            file.rename(folder / file.name)
        (folder / "train").rmdir()
    data = {"root": str(root), "val_fraction": 0.25}
    task = build_task(configure_detect(data=data, detect={"head": "retinanet"}))
    held = task.evaluation.loader.dataset.source
    assert len(task.train.source) + len(held) == 12 and len(held) in (3, 4)


@pytest.mark.parametrize(("split", "name"), [("train", "07.png"), ("val", "04.png")])
def test_an_image_of_another_size_stops_a_run_before_it_begins(
    configure_detect: Configure, copied: Path, tmp_path: Path, split: str, name: str
) -> None:
    with Image.open(copied / f"{split}2017" / name) as image:
        half = image.resize((22, 18))
    half.save(copied / f"{split}2017" / name)
    with pytest.raises(BadImage, match=rf"{name}: is 22x18, but 4\dx4\d in .*instances_{split}2017\.json"):
        train(configure_detect(data={"root": str(copied)}), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_data_of_other_annotations_is_refused(
    configure_detect: Configure, scenes: Scenes, copied: Path, tmp_path: Path
) -> None:
    write_voc(tmp_path / "voc", scenes)
    with pytest.raises(DataError, match="no masks"):
        build_task(configure_detect(data={"root": str(tmp_path / "voc")}))
    changed_annotation(copied, "train", 4, segmentation=[])
    with pytest.raises(DataError, match=r"annotation 5 of 04\.png: has no segmentation"):
        build_task(configure_detect(data={"root": str(copied)}))
    boxes = configure_detect(data={"root": str(copied)}, detect={"head": "faster_rcnn"})
    assert not build_task(boxes).model.has_masks  # who needs no outline may lack it
    file = copied / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"blue"', '"red"'))
    with pytest.raises(DataError, match=r"instances_val2017\.json: category 'red' is not among the 2"):
        build_task(boxes)


def test_validation_data_may_lack_a_class(configure_detect: Configure, copied: Path) -> None:
    file = copied / "annotations" / "instances_val2017.json"
    document = json.loads(file.read_text())
    document["categories"] = [one for one in document["categories"] if one["name"] == "blue"]
    blue = document["categories"][0]["id"]
    document["annotations"] = [one for one in document["annotations"] if one["category_id"] == blue]
    file.write_text(json.dumps(document))
    task = build_task(configure_detect(data={"root": str(copied)}))
    assert list(task.evaluation.source.classes) == NAMES


def test_a_detector_is_evaluated_on_its_own_classes_only(detect_run: Path, copied: Path) -> None:
    assert evaluate(detect_run, copied, split="train", device="cpu", workers=0).images == 12
    file = copied / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"blue"', '"red"'))
    with pytest.raises(DataError, match="category 'red' is not among the 2"):
        evaluate(detect_run, copied, device="cpu", workers=0)


def test_a_detector_of_more_classes_begins_with_all_but_the_last_layers(
    configure_detect: Configure, detect_run: Path, scenes: Scenes, tmp_path: Path
) -> None:
    write_yolo(tmp_path / "three", scenes, outlines=True)
    (tmp_path / "three" / "data.yaml").write_text("names: [green, blue, red]\n")
    best = str(detect_run / "best" / "model.safetensors")
    config = configure_detect(model={"checkpoint": best}, data={"root": str(tmp_path / "three")})
    state, own = load_model(detect_run).model.state_dict(), build_task(config).model.state_dict()
    fresh = {name for name in own if own[name].shape != state[name].shape}
    assert fresh and all(name.startswith(("box_predictor", "mask_predictor")) for name in fresh)
    assert all(torch.equal(own[name], state[name]) for name in own if "predictor" not in name)


def test_a_model_by_name_has_cocos_classes(blocks: Path, tmp_path: Path) -> None:
    model = create_detector("retinanet_poolformer_n")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    loaded = load_model("retinanet_poolformer_n", tmp_path / "weights.pth")
    assert loaded.task == "detect" and len(loaded.metadata.palette) == loaded.num_classes == 80
    save_pretrained(create_detector("retinanet_poolformer_n", num_classes=2, fpn_dim=16), tmp_path / "saved")
    saved = load_model(tmp_path / "saved", class_names=NAMES)
    assert saved.classes == ("green", "blue") and saved.preprocess == DetectionPreprocess()
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    report = evaluate(tmp_path / "saved", blocks, class_names=names, device="cpu", workers=0)
    assert report.images == 6 and report.classes == NAMES


def test_a_network_with_masks_is_evaluated_on_boxes_alone(
    detect_run: Path, blocks: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(blocks, bare)
    for file in (bare / "annotations").glob("*.json"):
        document = json.loads(file.read_text())
        for one in document["annotations"]:
            one.pop("segmentation", None)
        file.write_text(json.dumps(document))
    report = evaluate(detect_run, bare, device="cpu", workers=0)
    assert set(report.figures) == {"bbox"}
    assert report.metrics["ap50"] == pytest.approx(
        evaluate(detect_run, device="cpu", workers=0).metrics["ap50"]
    )
