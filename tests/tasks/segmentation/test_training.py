"""Training, evaluation and checkpoints of segmentation."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError, DataError, TrainingError
from metaformer.inference.evaluate import evaluate
from metaformer.inference.model import load_model
from metaformer.inference.predictor import Predictor
from metaformer.tasks.segmentation.layouts import LAYOUTS
from metaformer.tasks.segmentation.results import Segmentation, SegmentationReport
from metaformer.training.train import train
from metaformer.training.trainer import Trainer
from toys import Configure, build_task, log_lines


def test_training_improves_and_evaluation_repeats_its_metric(
    configure_segment: Configure, tmp_path: Path
) -> None:
    config = configure_segment(schedule={"epochs": 12}, optim={"lr": 1e-2}, evaluate={"every": 4})
    result = train(config, tmp_path / "run")
    assert result.complete and result.metric == "miou" and result.best > 0.5, result
    lines = log_lines(tmp_path / "run", "eval")
    assert [line["epoch"] for line in lines] == [1, 4, 8, 12]
    assert {"miou", "aacc", "macc"} <= lines[0].keys()
    report = evaluate(tmp_path / "run", device="cpu", workers=0)
    assert isinstance(report, SegmentationReport)
    assert report.metrics["miou"] == result.best and report.images == 5
    assert report.classes == ["background", "green", "blue"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_checkpoints_are_self_contained(configure_segment: Configure, tmp_path: Path) -> None:
    config = configure_segment(schedule={"epochs": 1}, segment={"head": "upernet"})
    train(config, tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    assert loaded.task == "segment" and loaded.classes == ("background", "green", "blue")
    assert len(loaded.metadata) == 3 and isinstance(loaded.preprocess, DensePreprocess)
    with torch.inference_mode():
        assert loaded.model.eval()(torch.zeros(1, 3, 40, 52)).shape == (1, 3, 40, 52)
    with pytest.raises(ConfigError, match="image_size"):
        loaded.with_preprocess(image_size=64)


def test_unknown_labels_are_found_before_training(
    configure_segment: Configure, patches: Path, tmp_path: Path
) -> None:
    shutil.copytree(patches, tmp_path / "data")
    bad = tmp_path / "data" / "annotations" / "training" / "03.png"
    labels = np.array(Image.open(bad))
    labels[0, :2] = 77
    Image.fromarray(labels).save(bad)
    with pytest.raises(DataError, match=r"03\.png.*77"):
        train(configure_segment(data={"root": str(tmp_path / "data")}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_loading_by_name_and_from_save_pretrained(patches: Path, tmp_path: Path) -> None:
    from metaformer.factory import create_segmenter
    from metaformer.weights.hub import save_pretrained

    model = create_segmenter("semantic_fpn_poolformer_n")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    published = load_model("semantic_fpn_poolformer_n", tmp_path / "weights.pth")
    assert published.task == "segment" and len(published.metadata) == 150
    save_pretrained(create_segmenter("upernet_poolformer_n", num_classes=3, head_dim=8), tmp_path / "saved")
    saved = load_model(tmp_path / "saved", class_names=["a", "b", "c"])
    assert saved.classes == ("a", "b", "c") and isinstance(saved.preprocess, DensePreprocess)
    (tmp_path / "names.txt").write_text("background\ngreen\nblue\n")
    options = {"class_names": tmp_path / "names.txt", "layout": "ade20k", "device": "cpu", "workers": 0}
    report = evaluate(tmp_path / "saved", patches, **options)  # type: ignore[arg-type]
    assert isinstance(report, SegmentationReport) and report.images == 5


ADE20K = {"train": "training", "val": "validation"}
# Image, label map and two values of classes for image `i` of a split
Files = tuple[str, str, tuple[int, int]]
FILES: dict[str, Callable[[str, int], Files]] = {
    "ade20k": lambda split, i: (
        f"images/{ADE20K[split]}/ADE_{i}.jpg", f"annotations/{ADE20K[split]}/ADE_{i}.png", (1, 150),
    ),
    "voc": lambda split, i: (
        f"VOC2012/JPEGImages/{split}_{i}.jpg", f"VOC2012/SegmentationClass/{split}_{i}.png", (0, 20),
    ),
    "cityscapes": lambda split, i: (
        f"leftImg8bit/{split}/ulm/ulm_{i}_leftImg8bit.png",
        f"gtFine/{split}/ulm/ulm_{i}_gtFine_labelIds.png",
        (7, 33),
    ),
    "coco_stuff": lambda split, i: (
        f"images/{split}2017/{i:012d}.jpg", f"stuffthingmaps/{split}2017/{i:012d}.png", (0, 181),
    ),
    "folders": lambda split, i: (f"images/{split}/{i}.png", f"masks/{split}/{i}.png", (0, 1)),
    "fiftyone": lambda split, i: (f"{split}/data/{i}.jpg", f"{split}/labels/{i}.png", (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_evaluation_and_prediction_on_each_layout(
    configure_segment: Configure, write: Callable[[str, object], Path], tmp_path: Path, layout: str
) -> None:
    root, draw = tmp_path / "data", np.random.RandomState(0)
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            image, label_map, (background, foreground) = FILES[layout](split, i)
            write(image, draw.randint(0, 256, (40 + i, 48, 3), dtype=np.uint8))
            labels = np.full((40 + i, 48), background, dtype=np.uint8)
            labels[8:20, 8:30] = foreground
            write(label_map, labels)
        if layout == "voc":
            names = "\n".join(f"{split}_{i}" for i in range(count))
            write(f"VOC2012/ImageSets/Segmentation/{split}.txt", names)
    if layout in ("folders", "fiftyone"):
        write("classes.txt", "ground\nthing\n")
    config = configure_segment(
        data={"root": str(root)}, segment={"reduce_zero_label": None}, schedule={"epochs": 1}
    )
    assert train(config, tmp_path / "run").complete
    report = evaluate(tmp_path / "run", scales=[0.75, 1.0], flip=True, device="cpu", workers=0)
    assert isinstance(report, SegmentationReport)
    assert report.figures.pixels == 40 * 48 + 41 * 48
    foreground = 2 * 12 * 22
    assert {row.pixels for row in report.figures.per_class} - {0} == {foreground, 81 * 48 - foreground}
    (found,) = Predictor(tmp_path / "run", device="cpu")(root / FILES[layout]("val", 1)[0])
    assert isinstance(found, Segmentation) and found.size == (48, 41)


def test_a_folder_without_splits_is_divided_as_a_whole(
    configure_segment: Configure, write: Callable[[str, object], Path], tmp_path: Path
) -> None:
    write("classes.txt", "ground\nthing\n")
    for i in range(12):
        write(f"data/{i}.jpg", np.full((40, 48, 3), 20 * i, dtype=np.uint8))
        write(f"labels/{i}.png", np.eye(40, 48, dtype=np.uint8))
    data = {"root": str(tmp_path / "data"), "val_fraction": 0.25}
    task = build_task(configure_segment(data=data, segment={"reduce_zero_label": None}))
    assert (len(task.train.source), len(task.evaluation.loader.dataset.source)) == (9, 3)


def test_an_activation_that_is_not_finite_is_located(
    configure_segment: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Repeating the step must not let batch norm take the value into its statistics."""
    original = Trainer.take_step

    def take_step(self: Trainer, *arguments: Any) -> Any:
        if self.step == 1:
            norm = self.task.model.get_submodule("backbone.stages.2.blocks.0.norm2")
            norm.register_forward_hook(lambda module, _, out: out * float("nan"))
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "take_step", take_step)
    with pytest.raises(
        TrainingError, match=r"step 1: the loss is not finite, first at .*stages\.2\.blocks\.0"
    ):
        train(configure_segment(), tmp_path / "run")
