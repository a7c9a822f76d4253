from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import metaformer
from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, DataError, WeightsError
from metaformer.factory import create_detector
from metaformer.inference.model import load_model, read_class_names
from metaformer.training.train import train
from metaformer.weights.hub import save_pretrained

Configure = Callable[..., TrainConfig]


@pytest.fixture
def run(configure: Configure, tmp_path: Path) -> Path:
    train(configure(schedule={"epochs": 1}, ema={"decay": 0.5}, evaluate={"crop": 0.75}), tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_is_self_contained(run: Path) -> None:
    bundle = load_model(run)
    assert bundle.classes == ("ant", "bee", "cat") and bundle.name == "poolformer_n"
    assert (bundle.preprocess.image_size, bundle.preprocess.crop) == (32, 0.75)
    assert bundle.model.config.dims == (8, 8, 16, 16)
    assert bundle.config is not None and bundle.config.ema.decay == 0.5


def test_the_average_is_taken_unless_the_raw_weights_are_asked_for(run: Path) -> None:
    step = run / "checkpoints" / "step_4"
    average, raw, best = (
        load_model(place, raw=r) for place, r in ((step, False), (step, True), (run, False))
    )
    weights = [bundle.model.head.fc.weight for bundle in (average, raw, best)]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


def test_from_pretrained_reads_the_best(run: Path) -> None:
    model = metaformer.from_pretrained(run / "best")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), load_model(run).model.eval()(images))
    assert list(model.pretrained_cfg["label_names"]) == ["ant", "bee", "cat"]
    assert model.pretrained_cfg["crop_pct"] == 0.75


def test_a_run_fine_tunes_the_best_of_another_of_other_classes(
    run: Path, configure: Configure, tmp_path: Path
) -> None:
    import shutil

    from metaformer.distributed import World
    from toys import build_task

    config = configure(model={"checkpoint": str(run / "best" / "model.safetensors")})
    two = tmp_path / "two"
    shutil.copytree(config.data.root, two, ignore=shutil.ignore_patterns("cat"))
    fewer = configure(model={"checkpoint": config.model.checkpoint}, data={"root": str(two)})
    best = load_model(run).model
    same, other = (build_task(c, World()).model for c in (config, fewer))
    assert torch.equal(same.head.fc.weight, best.head.fc.weight)
    assert torch.equal(other.stem.conv.weight, best.stem.conv.weight)
    assert other.head.fc.weight.shape[0] == 2


def test_other_preprocessing_is_laid_over(run: Path) -> None:
    look = load_model(run).looking(image_size=64, interpolation="bilinear").preprocess
    assert (look.image_size, look.crop, look.interpolation) == (64, 0.75, "bilinear")


def test_class_names_come_from_a_list_or_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("x\ny\n\nz\n")
    assert load_model(run, classes=tmp_path / "names.txt").classes == ("x", "y", "z")
    with pytest.raises(ConfigError, match=r"2 names, but .* tells 3 classes"):
        load_model(run, classes=["x", "y"])
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no class name"):
        read_class_names(tmp_path / "names.txt")


def test_a_run_brings_its_own_weights(run: Path) -> None:
    with pytest.raises(ConfigError, match="brings its own weights"):
        load_model(run, run / "best" / "model.safetensors")


def test_a_file_of_weights_needs_a_model_beside_it(run: Path) -> None:
    file = run / "best" / "model.safetensors"
    with pytest.raises(ConfigError, match=f"MODEL --checkpoint {file}"):
        load_model(file)


def test_the_runs_own_classes_in_another_order_are_refused(run: Path) -> None:
    assert load_model(run, classes=["Ameise", "Biene", "Katze"]).classes == ("Ameise", "Biene", "Katze")
    with pytest.raises(ConfigError, match="in another order"):
        load_model(run, classes=["bee", "ant", "cat"])


def test_a_folder_of_save_pretrained_is_a_source_too(tmp_path: Path) -> None:
    model = metaformer.create_model("poolformer_n", num_classes=3).eval()
    metaformer.save_pretrained(model, tmp_path / "mine")
    bundle = load_model(tmp_path / "mine", classes=["a", "b", "c"])
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(bundle.model(x), model(x)) and bundle.classes == ("a", "b", "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="neither a run, a checkpoint, nor"):
        load_model(tmp_path / "empty")


def test_a_checkpoint_without_its_manifest_is_damaged_not_published(run: Path) -> None:
    (run / "best" / "manifest.json").unlink()
    with pytest.raises(WeightsError, match="manifest"):
        load_model(run)


def test_a_published_detector_keeps_cocos_names_and_numbers(tmp_path: Path) -> None:
    model = create_detector("retinanet", "poolformer_n", 80, fpn_dim=8)
    model.pretrained_cfg["data"] = "coco"
    save_pretrained(model, tmp_path)
    bundle = load_model(tmp_path)
    assert bundle.classes is not None and bundle.classes[0] == "person" and bundle.task == "detect"
    assert (bundle.category_ids[0], bundle.category_ids[11], bundle.category_ids[-1]) == (1, 13, 90)
    assert len(bundle.palette) == 80
