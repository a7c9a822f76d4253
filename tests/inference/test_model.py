import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import metaformer
from metaformer.checkpoint.checkpoint import read_checkpoint, write_checkpoint
from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, DataError, WeightsError
from metaformer.factory import create_detector
from metaformer.inference.model import load_model
from metaformer.training.train import train
from toys import TINY, build_task

Configure = Callable[..., TrainConfig]


@pytest.fixture
def run(configure: Configure, tmp_path: Path) -> Path:
    train(configure(schedule={"epochs": 1}, ema={"decay": 0.5}, evaluate={"crop": 0.75}), tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_is_self_contained(run: Path) -> None:
    loaded = load_model(run)
    assert loaded.classes == ("ant", "bee", "cat") and loaded.name == "poolformer_n"
    assert (loaded.preprocess.image_size, loaded.preprocess.crop) == (32, 0.75)
    assert list(loaded.model.config.dims) == TINY["dims"]
    assert loaded.config is not None and loaded.config.ema.decay == 0.5


def test_averaged_weights_are_the_default_and_raw_ones_optional(run: Path) -> None:
    step = run / "checkpoints" / "step_4"
    loaded = [load_model(source, raw=raw) for source, raw in ((step, False), (step, True), (run, False))]
    average, raw, best = (one.model.head.fc.weight for one in loaded)
    assert torch.equal(average, best) and not torch.equal(average, raw)


def test_from_pretrained_reads_the_best_checkpoint(run: Path) -> None:
    model = metaformer.from_pretrained(run / "best")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), load_model(run).model.eval()(images))
    assert list(model.pretrained_cfg["label_names"]) == ["ant", "bee", "cat"]
    assert model.pretrained_cfg["crop_pct"] == 0.75


def test_a_run_fine_tunes_the_best_of_another_of_other_classes(
    run: Path, configure: Configure, tmp_path: Path
) -> None:
    config = configure(model={"checkpoint": str(run / "best" / "model.safetensors")})
    two = tmp_path / "two"
    shutil.copytree(config.data.root, two, ignore=shutil.ignore_patterns("cat"))
    fewer = configure(model={"checkpoint": config.model.checkpoint}, data={"root": str(two)})
    best = load_model(run).model
    same, other = (build_task(one).model for one in (config, fewer))
    assert torch.equal(same.head.fc.weight, best.head.fc.weight)
    assert torch.equal(other.stem.conv.weight, best.stem.conv.weight)
    assert other.head.fc.weight.shape[0] == 2


def test_preprocessing_can_be_changed_field_by_field(run: Path) -> None:
    loaded = load_model(run)
    changed = loaded.with_preprocess(image_size=64, interpolation="bilinear", crop=None).preprocess
    assert (changed.image_size, changed.crop, changed.interpolation) == (64, 0.75, "bilinear")
    assert loaded.preprocess.image_size == 32
    with pytest.raises(ConfigError, match="long_side"):
        loaded.with_preprocess(long_side=64)


def test_class_names_come_from_a_list_or_a_file(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("x\ny\nz\n")
    assert load_model(run, class_names=file).classes == ("x", "y", "z")
    assert load_model(run, class_names=["Ameise", "Biene", "Katze"]).classes == ("Ameise", "Biene", "Katze")
    with pytest.raises(ConfigError, match=r"class_names: 2 .* 3"):
        load_model(run, class_names=["x", "y"])
    with pytest.raises(ConfigError, match=r"class_names: .* order"):  # the run's own
        load_model(run, class_names=["bee", "ant", "cat"])
    file.write_text("x\n\nz\n")  # the names after an empty line would go to other classes
    with pytest.raises(DataError, match=r"names\.txt.*line 2"):
        load_model(run, class_names=file)


def test_weights_come_from_one_place(run: Path) -> None:
    file = run / "best" / "model.safetensors"
    with pytest.raises(ConfigError, match="checkpoint"):
        load_model(run, file)
    with pytest.raises(ConfigError, match=f"MODEL --checkpoint {file}"):
        load_model(file)


def test_a_directory_of_save_pretrained_is_a_source(tmp_path: Path) -> None:
    model = metaformer.create_model("poolformer_n", num_classes=3).eval()
    metaformer.save_pretrained(model, tmp_path / "mine")
    loaded = load_model(tmp_path / "mine", class_names=["a", "b", "c"])
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.model(x), model(x)) and loaded.classes == ("a", "b", "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty"):
        load_model(tmp_path / "empty")


def test_a_checkpoint_without_its_manifest_is_damaged(run: Path) -> None:
    (run / "best" / "manifest.json").unlink()
    with pytest.raises(WeightsError, match="manifest"):
        load_model(run)


def test_a_published_detector_has_cocos_names_and_category_ids(tmp_path: Path) -> None:
    model = create_detector("retinanet", "poolformer_n", 80, fpn_dim=8)
    model.pretrained_cfg["data"] = "coco"
    metaformer.save_pretrained(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.classes is not None and loaded.classes[0] == "person" and loaded.task == "detect"
    ids = loaded.metadata.category_ids
    assert (ids[0], ids[11], ids[-1]) == (1, 13, 90) and len(loaded.metadata.palette) == 80


def test_a_checkpoint_of_an_unknown_task_is_refused(untrained: dict[str, Path], tmp_path: Path) -> None:
    saved = read_checkpoint(untrained["classify"])
    card = {**saved.state["card"], "task": "caption"}
    write_checkpoint(tmp_path / "new", {"model": saved.tensors("model")}, {**saved.state, "card": card})
    with pytest.raises(WeightsError, match="'caption'"):
        load_model(tmp_path / "new")
