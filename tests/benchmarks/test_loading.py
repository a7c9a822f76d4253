"""Benchmarks of data loading."""

import json
import multiprocessing
import multiprocessing.connection
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.loaders import FEEDS, PIPELINES, SIZE, Feed, LoadingConfig, train_config, write_image_folder
from benchmarks.loading import LoadingReport, Measured, core_seconds, measure_loading
from metaformer.bench.timing import Machine, Timing
from metaformer.config import AugmentConfig
from metaformer.data.dataset import AugmentedDataset
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import TrainSampler
from metaformer.errors import BadImage, ConfigError, DataError, UnknownName
from metaformer.process import cores
from metaformer.recipes.poolformer import COMMON
from metaformer.tasks.classifier import augmentation

CPU = torch.device("cpu")
CONFIG = LoadingConfig(images=8, batch=4, size=64, workers=0)


def built(name: str, pipeline: str, images: Path) -> Feed:
    return FEEDS[name](pipeline, images, CONFIG, CPU)


def test_all_evaluate_on_the_same_pixels(images: Path) -> None:
    tensors = {name: built(name, "evaluation", images).first() for name in FEEDS}
    ours = tensors["ours"]
    assert ours.shape == (4, 3, 64, 64)
    assert torch.equal(tensors["torchvision"], ours)
    torch.testing.assert_close(tensors["timm"], ours, rtol=1e-5, atol=1e-5)
    # its resize rounds differently from Pillow's
    gray = (tensors["torchvision tensors"] - ours).abs() * 0.225 * 255
    assert gray.max() < 4 and gray.mean() < 0.5


@pytest.mark.parametrize("pipeline", ["train", "plain"])
@pytest.mark.parametrize("name", FEEDS)
def test_all_train_on_normalized_crops(name: str, pipeline: str, images: Path) -> None:
    feed = built(name, pipeline, images)
    tensors = feed.first()
    assert tensors.shape == (4, 3, 64, 64) and tensors.dtype == torch.float32
    assert tensors.isfinite().all() and tensors.min() < -0.5 and tensors.max() < 6
    assert feed.epoch(1) == 8


def test_ours_is_the_loader_of_training(images: Path) -> None:
    source = ImageFolder(images, "train")
    data = AugmentedDataset(source, augmentation(train_config("train", 64)))
    sampler = TrainSampler(len(source), batch_size=4)
    expected = torch.stack([data[sample][0] for sample in next(iter(sampler))])
    assert torch.equal(built("ours", "train", images).first(), expected)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_timm_survives_pillow(pipeline: str, images: Path) -> None:
    """Its Posterize requests 0 bits now and then, which Pillow refuses."""
    feed = built("timm", pipeline, images)
    assert sum(feed.epoch(turn) for turn in range(12)) == 96


def test_generated_images_have_imagenets_size(images: Path) -> None:
    found = ImageFolder(images, "train")
    assert len(found) == 8 and len(found.classes) == 4
    assert {found.image(i).size for i in range(8)} == {SIZE}
    assert all(20_000 < path.stat().st_size < 200_000 for path in found.paths)
    assert len({path.read_bytes() for path in found.paths}) == 8


def test_links_to_images_at_any_depth(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "a/b").mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / ("a/b" if number % 2 else "a") / f"{number}.png")
    (root / "notes.txt").write_text("no image")
    (tmp_path / "linked").mkdir()
    assert write_image_folder(tmp_path / "linked", 5, root) == 5
    found = ImageFolder(tmp_path / "linked", "train")
    assert len({found.image(i).tobytes() for i in range(len(found))}) == 5
    (tmp_path / "all").mkdir()
    assert write_image_folder(tmp_path / "all", 100, root) == 9


def test_too_few_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    with pytest.raises(DataError, match="empty"):
        write_image_folder(tmp_path / "linked", 5, tmp_path / "empty")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rounds", 0), ("workers", 10_000), ("images", 63), ("model_speed", 0.0), ("pipelines", ("trian",))],
)
def test_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field.removesuffix("s")):
        LoadingConfig(**{field: value})  # type: ignore[arg-type]


def test_a_worker_for_each_core() -> None:
    assert LoadingConfig().processes == cores()
    assert LoadingConfig(workers=0).processes == 0


def test_the_recipes_augmentation() -> None:
    assert train_config("train", 224).augment == COMMON.augment
    assert train_config("plain", 32).augment != AugmentConfig()
    assert train_config("plain", 32).data.image_size == 32


LOADERS = {
    "ours": Measured(Timing((1.0, 2.0, 1.0), 100), (0.5, 0.4, 0.3)),
    "timm": Measured(Timing((2.0, 2.0, 3.0), 100)),
    "torchvision": Measured(failure="OSError: no such thing"),
}
SETTINGS = LoadingConfig(workers=1, model_speed=30.0)
REPORT = LoadingReport({"train": LOADERS}, 30.0, SETTINGS, Machine("cpu: some", 2, "2", "3", "plain"))


def small(root: Path, **changes: Any) -> LoadingConfig:
    values = {"images": 4, "batch": 4, "size": 32, "workers": 0, "rounds": 1, "model_speed": 1, **changes}
    return LoadingConfig(root=root, device="cpu", **values)


def test_every_loader_is_measured_in_turn(images: Path) -> None:
    report = measure_loading(small(images, images=9, workers=1, rounds=2, pipelines=("evaluation",)))
    loaders = report.loaders["evaluation"]
    assert list(loaders) == list(FEEDS)
    for measured in loaders.values():
        assert measured.timing is not None and not measured.failure
        assert measured.timing.batch == 8, "whole batches of the nine"
        assert len(measured.timing.seconds) == len(measured.core_seconds) == 2 and measured.timing.minimum > 0


def test_a_models_step_is_measured(images: Path) -> None:
    config = small(images, pipelines=("train",), model="poolformer_n", step_batch=2, model_speed=None)
    report = measure_loading(config)
    assert report.model_speed > 0 and "poolformer_n trains on" in report.verdict()


def test_too_few_images_and_an_unknown_model_are_refused(images: Path) -> None:
    with pytest.raises(DataError, match="8 images"):
        measure_loading(small(images, images=12))
    with pytest.raises(UnknownName, match="resnet_s12"):
        measure_loading(small(images, model="resnet_s12", model_speed=None))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_a_failing_loader_is_left_out(tmp_path: Path) -> None:
    """Torchvision's decoder does not read BMP."""
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.bmp")
    report = measure_loading(small(tmp_path))
    failed = report.loaders["train"]["torchvision tensors"]
    assert failed.timing is None and "RuntimeError" in failed.failure
    assert report.loaders["train"]["torchvision"].timing is not None
    assert f"torchvision tensors: {failed.failure}" in report.text()


def test_a_damaged_image_is_an_error(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"\.jpg"):
        measure_loading(small(tmp_path))


def test_text() -> None:
    text = REPORT.text()
    row = next(line for line in text.splitlines() if line.startswith("timm")).split()
    assert row[:6] == ["timm", "50", "50", "-", "2.00", "2.00"], "fastest rounds 2 : 1, pairs 2, 1 and 3"
    own = next(line for line in text.splitlines() if line.startswith("ours")).split()
    assert own == ["ours", "100", "100", "4.00"]
    assert "torchvision: OSError: no such thing" in text
    assert "not the bottleneck; 1 of 1 workers would do" in text


def test_a_loader_that_is_the_bottleneck() -> None:
    verdict = replace(REPORT, model_speed=750.0).verdict()
    assert "750 images/s" in verdict and "gives 100" in verdict
    assert "IS the bottleneck; about 8 workers" in verdict


@pytest.mark.parametrize("workers", [0, 1])
def test_the_cores_are_shared_with_a_model_on_the_cpu(workers: int) -> None:
    config = LoadingConfig(workers=workers)
    share = 100 * (1 / 100) / (1 / 100 + cores() / 25)
    verdict = replace(REPORT, config=config, model_speed=25.0).verdict()
    assert f"take {share:.1f} % of the time" in verdict and "poolformer_s12 trains on 25" in verdict
    cuda = replace(REPORT.machine, device="cuda: some")
    assert "%" not in replace(REPORT, config=config, machine=cuda).verdict()


def test_json() -> None:
    values = json.loads(json.dumps(REPORT.to_dict()))
    assert values["pipelines"]["train"]["timm"]["ours_by_it"] == {
        "best": 2.0,
        "median": 2.0,
        "pairs": [2.0, 1.0, 3.0],
    }
    assert values["pipelines"]["train"]["torchvision"] == {"failure": "OSError: no such thing"}
    assert values["settings"]["pipelines"] == ["train", "plain", "evaluation"]
    assert "bottleneck" in values["verdict"]


def test_without_training_there_is_no_verdict() -> None:
    report = replace(REPORT, loaders={"evaluation": LOADERS})
    assert "bottleneck" not in report.text() and report.to_dict()["verdict"] is None


def _work(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def _serve(pipe: "multiprocessing.connection.Connection") -> None:
    _work(time.process_time() + 0.3)
    pipe.send("done")
    pipe.recv()


def test_processor_time_counts_children_and_no_sleep() -> None:
    here, there = multiprocessing.Pipe()
    before = core_seconds()
    child = multiprocessing.Process(target=_serve, args=(there,))
    child.start()
    assert here.recv() == "done"
    time.sleep(0.2)
    after = core_seconds()
    here.send("end")
    child.join()
    assert before is not None and after is not None
    assert 0.25 < after - before < 1.5
