"""Segmentation through the engine: it learns, stops and goes on as classification does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.checkpoint.run_dir import read_log
from metaformer.config import TrainConfig
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError, TrainingError
from metaformer.inference.evaluate import evaluate
from metaformer.inference.model import load_model
from metaformer.inference.predictor import Predictor
from metaformer.tasks.segmentation.layouts import LAYOUTS
from metaformer.tasks.segmentation.results import Segmentation, SegmentationReport
from metaformer.training.train import train
from metaformer.training.trainer import Trainer
from toys import build_task

Configure = Callable[..., TrainConfig]
Digest = Callable[[Path], dict[str, Any]]


def test_a_run_learns_and_is_measured_again_the_same(configure_segment: Configure, tmp_path: Path) -> None:
    config = configure_segment(schedule={"epochs": 12}, optim={"lr": 1e-2}, evaluate={"every": 4})
    result = train(config, tmp_path / "run")
    assert result.complete and result.metric == "miou" and result.best > 0.5, result
    lines = [line for line in read_log(tmp_path / "run") if line["kind"] == "eval"]
    assert [line["epoch"] for line in lines] == [4, 8, 12]
    assert {"miou", "aacc", "macc"} <= lines[0].keys()
    report = evaluate(tmp_path / "run", device="cpu", workers=0)
    assert isinstance(report, SegmentationReport)
    assert report.metrics["miou"] == result.best and report.images == 5
    assert report.classes == ["background", "green", "blue"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    configure_segment: Configure, tmp_path: Path, digest: Digest, workers: int
) -> None:
    everything: dict[str, Any] = {
        "model": {"drop_path_rate": 0.2},
        "segment": {"dropout": 0.3, "auxiliary": True, "dice": 0.5},
        "optim": {"accumulate": 2, "clip": 1.0},
        "ema": {"decay": 0.9},
        "runtime": {"save_every": 1},
        "schedule": {"name": "poly", "steps": 5, "warmup_steps": 1},
        "evaluate": {"every_steps": 2},
    }
    config = configure_segment(**everything, data={"workers": workers})
    result = train(config, tmp_path / "straight")
    assert result.steps == 5
    evals = [line["step"] for line in read_log(tmp_path / "straight") if line["kind"] == "eval"]
    assert evals == [2, 4, 5]
    train(config, tmp_path / "other")
    for step in (4, 5):
        for file in (tmp_path / "other" / "checkpoints" / f"step_{step}").iterdir():
            file.unlink()
        (tmp_path / "other" / "checkpoints" / f"step_{step}").rmdir()
    again = replace(config, data=replace(config.data, workers=2 - workers))
    assert train(again, tmp_path / "other", resume="auto").complete
    for place in ("checkpoints/step_5", "best"):
        one, other = (digest(tmp_path / name / place) for name in ("straight", "other"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_checkpoint_is_all_that_use_needs(configure_segment: Configure, tmp_path: Path) -> None:
    config = configure_segment(schedule={"epochs": 1}, segment={"head": "upernet"})
    train(config, tmp_path / "run")
    bundle = load_model(tmp_path / "run")
    assert bundle.task == "segment" and bundle.classes == ("background", "green", "blue")
    assert len(bundle.palette) == 3 and isinstance(bundle.preprocess, DensePreprocess)
    with torch.inference_mode():
        assert bundle.model.eval()(torch.zeros(1, 3, 40, 52)).shape == (1, 3, 40, 52)
    with pytest.raises(ConfigError, match="image_size"):
        bundle.looking(image_size=64)


def test_a_label_out_of_range_stops_a_run_before_it_begins(
    configure_segment: Configure, patches: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(patches, tmp_path / "data")
    bad = tmp_path / "data" / "annotations" / "training" / "03.png"
    labels = np.array(Image.open(bad))
    labels[0, :2] = 77
    Image.fromarray(labels).save(bad)
    with pytest.raises(DataError, match=r"03\.png.*77"):
        train(configure_segment(data={"root": str(tmp_path / "data")}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_class_weights_must_be_as_many_as_classes(configure_segment: Configure) -> None:
    with pytest.raises(ConfigError, match="class_weights has 2 numbers for 3 classes"):
        build_task(configure_segment(segment={"class_weights": [1.0, 2.0]}), World())


def test_options_of_the_other_task_are_refused(configure_segment: Configure, tmp_path: Path) -> None:
    train(configure_segment(schedule={"epochs": 1}), tmp_path / "run")
    with pytest.raises(ConfigError, match="crops: semantic_fpn_poolformer_n tells classes of pixels apart"):
        evaluate(tmp_path / "run", crops=5, device="cpu")


def test_backbone_weights_begin_a_segmenter(
    configure: Configure, configure_segment: Configure, tmp_path: Path
) -> None:
    train(configure(schedule={"epochs": 1}), tmp_path / "classifier")
    file = tmp_path / "classifier" / "best" / "model.safetensors"
    task = build_task(configure_segment(model={"checkpoint": str(file)}), World())
    classifier = load_model(tmp_path / "classifier").model
    assert torch.equal(task.model.backbone.stem.conv.weight, classifier.stem.conv.weight)  # type: ignore[union-attr]


def test_a_published_name_brings_its_data_sets_classes(patches: Path, tmp_path: Path) -> None:
    from metaformer.factory import create_segmenter
    from metaformer.weights.hub import save_pretrained

    model = create_segmenter("semantic_fpn_poolformer_n")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    bundle = load_model("semantic_fpn_poolformer_n", tmp_path / "weights.pth")
    assert bundle.task == "segment" and len(bundle.palette) == 150
    save_pretrained(create_segmenter("upernet_poolformer_n", num_classes=3), tmp_path / "saved")
    saved = load_model(tmp_path / "saved", classes=["a", "b", "c"])
    assert saved.classes == ("a", "b", "c") and isinstance(saved.preprocess, DensePreprocess)
    (tmp_path / "names.txt").write_text("background\ngreen\nblue\n")
    report = evaluate(
        tmp_path / "saved", patches, classes=tmp_path / "names.txt", layout="ade20k", device="cpu", workers=0
    )
    assert isinstance(report, SegmentationReport) and report.images == 5


# Where each layout wants the image and the label map `i` of a split, and two of its class numbers.
Places = tuple[str, str, tuple[int, int]]
PLACES: dict[str, Callable[[str, int], Places]] = {
    "ade20k": lambda split, i: (
        f"images/{'training' if split == 'train' else 'validation'}/ADE_{i}.jpg",
        f"annotations/{'training' if split == 'train' else 'validation'}/ADE_{i}.png",
        (1, 150),
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
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_trained_on_measured_and_predicted(
    configure_segment: Configure, tmp_path: Path, layout: str
) -> None:
    root, draw = tmp_path / "data", np.random.RandomState(0)
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            image, label_map, (one, other) = PLACES[layout](split, i)
            for place in (root / image, root / label_map):
                place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.randint(0, 256, (40 + i, 48, 3), dtype=np.uint8)).save(root / image)
            labels = np.full((40 + i, 48), one, dtype=np.uint8)
            labels[8:20, 8:30] = other
            Image.fromarray(labels).save(root / label_map)
    if layout == "folders":
        (root / "classes.txt").write_text("ground\nthing\n")
    if layout == "voc":
        for split, count in (("train", 6), ("val", 2)):
            file = root / f"VOC2012/ImageSets/Segmentation/{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(f"{split}_{i}" for i in range(count)))
    config = configure_segment(
        data={"root": str(root)}, segment={"reduce_zero_label": None}, schedule={"epochs": 1}
    )
    assert train(config, tmp_path / "run").complete
    report = evaluate(tmp_path / "run", scales=[0.75, 1.0], flip=True, device="cpu", workers=0)
    assert isinstance(report, SegmentationReport)
    assert report.figures.pixels == 40 * 48 + 41 * 48
    things = 2 * 12 * 22
    assert {row.pixels for row in report.figures.per_class} - {0} == {things, 81 * 48 - things}
    (found,) = Predictor(tmp_path / "run", device="cpu")(root / PLACES[layout]("val", 1)[0])
    assert isinstance(found, Segmentation) and found.size == (48, 41)


def test_an_activation_that_is_not_finite_is_no_fault_of_the_weights(
    configure_segment: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Batch norm behind it takes the number into its statistics when the step is repeated."""
    honest = Trainer.take_step

    def take_step(self: Trainer, *arguments: Any) -> Any:
        if self.step == 1:
            norm = self.task.model.get_submodule("backbone.stages.2.blocks.0.norm2")
            norm.register_forward_hook(lambda module, _, out: out * float("nan"))
        return honest(self, *arguments)

    monkeypatch.setattr(Trainer, "take_step", take_step)
    with pytest.raises(
        TrainingError, match=r"step 1: the loss is not finite, first at .*stages\.2\.blocks\.0"
    ):
        train(configure_segment(), tmp_path / "run")
