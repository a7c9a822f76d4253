"""Loaded models, and the check of what was exported."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import metaformer
from metaformer.checkpoint.checkpoint import read_checkpoint, write_checkpoint
from metaformer.errors import ConfigError, DataError, MissingPackage, UnknownName, WeightsError
from metaformer.factory import create_detector, create_model
from metaformer.inference.evaluate import evaluate
from metaformer.inference.exported import contained, load_openvino
from metaformer.inference.model import load_model
from metaformer.inference.verify import Verdict, verify
from metaformer.weights.sources import SOURCES, Source
from toys import TINY, Configure, build_task


def test_a_checkpoint_is_self_contained(classify_run: Path) -> None:
    loaded = load_model(classify_run)
    assert loaded.classes == ("ant", "bee", "cat") and loaded.name == "poolformer_n"
    assert (loaded.preprocess.image_size, loaded.preprocess.crop) == (32, 0.75)
    assert list(loaded.model.config.dims) == TINY["dims"]
    assert loaded.config is not None and loaded.config.ema.decay == 0.5


def test_averaged_weights_are_the_default_and_raw_ones_optional(classify_run: Path) -> None:
    step = classify_run / "checkpoints" / "step_4"
    loaded = [
        load_model(source, raw=raw) for source, raw in ((step, False), (step, True), (classify_run, False))
    ]
    average, raw, best = (one.model.head.fc.weight for one in loaded)
    assert torch.equal(average, best) and not torch.equal(average, raw)


def test_from_pretrained_reads_the_best_checkpoint(classify_run: Path) -> None:
    model = metaformer.from_pretrained(classify_run / "best")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), load_model(classify_run).model.eval()(images))
    assert list(model.pretrained_cfg["label_names"]) == ["ant", "bee", "cat"]
    assert model.pretrained_cfg["crop_pct"] == 0.75


def test_a_run_fine_tunes_the_best_of_another_of_other_classes(
    classify_run: Path, configure: Configure, tmp_path: Path
) -> None:
    config = configure(model={"checkpoint": str(classify_run / "best" / "model.safetensors")})
    two = tmp_path / "two"
    shutil.copytree(config.data.root, two, ignore=shutil.ignore_patterns("cat"))
    fewer = configure(model={"checkpoint": config.model.checkpoint}, data={"root": str(two)})
    best = load_model(classify_run).model
    same, other = (build_task(one).model for one in (config, fewer))
    assert torch.equal(same.head.fc.weight, best.head.fc.weight)
    assert torch.equal(other.stem.conv.weight, best.stem.conv.weight)
    assert other.head.fc.weight.shape[0] == 2


def test_preprocessing_can_be_changed_field_by_field(classify_run: Path) -> None:
    loaded = load_model(classify_run)
    changed = loaded.with_preprocess(image_size=64, interpolation="bilinear", crop=None).preprocess
    assert (changed.image_size, changed.crop, changed.interpolation) == (64, 0.75, "bilinear")
    assert loaded.preprocess.image_size == 32
    with pytest.raises(ConfigError, match="long_side"):
        loaded.with_preprocess(long_side=64)


def test_class_names_come_from_a_list_or_a_file(classify_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("x\ny\nz\n")
    assert load_model(classify_run, class_names=file).classes == ("x", "y", "z")
    assert load_model(classify_run, class_names=["Ameise", "Biene", "Katze"]).classes == (
        "Ameise",
        "Biene",
        "Katze",
    )
    with pytest.raises(ConfigError, match=r"class_names: 2 .* 3"):
        load_model(classify_run, class_names=["x", "y"])
    with pytest.raises(ConfigError, match=r"class_names: .* order"):  # the run's own
        load_model(classify_run, class_names=["bee", "ant", "cat"])
    file.write_text("x\n\nz\n")  # the names after an empty line would go to other classes
    with pytest.raises(DataError, match=r"names\.txt.*line 2"):
        load_model(classify_run, class_names=file)


def test_weights_come_from_one_place(classify_run: Path) -> None:
    file = classify_run / "best" / "model.safetensors"
    with pytest.raises(ConfigError, match="checkpoint"):
        load_model(classify_run, file)
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


def test_a_checkpoint_without_its_manifest_is_damaged(classify_run: Path, tmp_path: Path) -> None:
    best = shutil.copytree(classify_run / "best", tmp_path / "best")
    (best / "manifest.json").unlink()
    with pytest.raises(WeightsError, match="manifest"):
        load_model(best)


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


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[openvino\]"):
        load_openvino()


def test_telemetry_is_off_and_the_environment_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    monkeypatch.delenv("NNCF_CI", raising=False)
    with contained():
        assert os.environ["CI"] == os.environ["NNCF_CI"] == "true"
    assert os.environ["CI"] == "false" and "NNCF_CI" not in os.environ


NAME = "poolformer_n.small"


@pytest.fixture
def data(own_pets: Path) -> Path:
    """An image folder with a `val` split of three classes."""
    return own_pets


@pytest.fixture
def source(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A checkpoint in the cache, with the accuracy that it really has on the data."""
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path / "cache"))
    small = Source(
        model="poolformer_n",
        tag="small",
        url="https://example.invalid/files/small.pth",
        format="timm",
        metrics={"top1": 0.0},
        num_classes=3,
        image_size=(32, 32),
        crop_pct=0.8,
    )
    torch.manual_seed(0)
    file = tmp_path / "cache" / "weights" / small.file
    file.parent.mkdir(parents=True)
    torch.save(create_model("poolformer_n", num_classes=3).state_dict(), file)
    monkeypatch.setitem(SOURCES, NAME, small)
    top1 = 100 * evaluate(NAME, data, workers=0, device="cpu").top1
    small = replace(small, metrics={"top1": round(top1, 1)})
    monkeypatch.setitem(SOURCES, NAME, small)
    return small


def test_measured_equals_published(source: Source, data: Path) -> None:
    (verdict,) = verify(NAME, data, workers=0, device="cpu")
    assert verdict.ok and verdict.measured == pytest.approx(source.metrics["top1"], abs=0.05)
    assert "ok" in verdict.text() and verdict.to_dict()["ok"] is True


def test_a_difference_is_reported(source: Source, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, NAME, replace(source, metrics={"top1": source.metrics["top1"] + 0.4}))
    (verdict,) = verify(NAME, data, workers=0, device="cpu")
    assert not verdict.ok and "differs" in verdict.text() and "-0." in verdict.text()


def test_a_changed_file_is_refused(source: Source, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, NAME, replace(source, sha256="0123abcd"))
    (verdict,) = verify(NAME, data, workers=0, device="cpu")
    assert not verdict.ok and verdict.measured is None and "published is 0123abcd" in verdict.text()


def test_one_failure_does_not_stop_the_others(
    source: Source, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "poolformer_n.other", replace(source, tag="other", sha256="0123abcd"))
    verdicts = {verdict.name: verdict for verdict in verify("poolformer_n.*", data, workers=0, device="cpu")}
    assert verdicts[NAME].ok and not verdicts["poolformer_n.other"].ok


def test_names_that_cannot_be_verified(data: Path) -> None:
    with pytest.raises(UnknownName, match="caformer_s18"):
        next(verify("caformer_s81", data))
    with pytest.raises(UnknownName, match="caformer_s18"):
        next(verify("caformr_s*", data))
    with pytest.raises(WeightsError, match=r"caformer_s18\.sail_in22k"):
        next(verify("caformer_s18.sail_in22k", data))


def test_tolerance() -> None:
    assert Verdict("a", 80.3, 80.33).ok and Verdict("a", 80.3, 80.2).ok
    assert not Verdict("a", 80.3, 80.41).ok and not Verdict("a", None, 80.3).ok
