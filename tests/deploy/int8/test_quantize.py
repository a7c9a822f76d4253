"""Quantization of a classifier: report and directory agree, and the directory is used as a run is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import metaformer
from metaformer.checkpoint.checkpoint import FORMAT, STATE
from metaformer.checkpoint.manifest import write_directory
from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError, OutputError, VersionError, WeightsError
from metaformer.inference.int8_model import Int8Network
from metaformer.inference.model import load_model
from metaformer.weights.hub import save_pretrained

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def source(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier as `save_pretrained` writes it, its last layer fitted to the training images."""
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "image_size": (32, 32)}
    model = metaformer.create_model("poolformer_s12", num_classes=3, **tiny)
    model.pretrained_cfg.update(label_names=list(CLASSES), input_size=(3, 32, 32))
    transform = Preprocess.from_pretrained_cfg(model.pretrained_cfg).transform()
    folder = ImageFolder(pets, "train")
    with torch.no_grad():
        images = torch.stack([transform(folder.image(i)) for i in range(len(folder))])
        features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        targets = torch.eye(3)[torch.tensor(folder.labels)] * 6 - 2
        solution = torch.linalg.lstsq(F.pad(features, (0, 1), value=1.0), targets).solution
        model.head.fc.weight.copy_(solution[:-1].T)
        model.head.fc.bias.copy_(solution[-1])
    directory = tmp_path_factory.mktemp("net") / "net"
    save_pretrained(model, directory)
    return directory


@pytest.fixture(scope="module")
def out(source: Path, pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantized") / "int8"
    report = metaformer.quantize(source, pets, directory, images=20, batch_size=4)
    assert json.loads((directory / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    return directory


def test_the_report_is_what_the_directory_computes(source: Path, pets: Path, out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    assert (report["calibrated"], report["images"]) == (20, 15)
    for directory, key in ((source, "float32"), (out, "int8")):
        evaluated = metaformer.evaluate(directory, pets, batch_size=4, workers=0, device="cpu")
        assert evaluated.metrics["top1"] == report[key]["top1"]
        assert evaluated.metrics["loss"] == pytest.approx(report[key]["loss"], abs=1e-6)
    assert report["products"] == 13 and report["float_products"] == []  # stem, 3 × down, 4 × 2, head
    assert report["float32"]["top1"] == report["int8"]["top1"] == report["agreement"] == 1.0
    assert 0 < report["mean_difference"] < report["largest_difference"] < 0.5 * report["largest_logit"]
    size = sum((out / name).stat().st_size for name in ("network.xml", "network.bin"))
    assert report["int8"]["bytes"] == size


def test_the_directory_is_used_as_a_run_is(source: Path, pets: Path, out: Path) -> None:
    model = load_model(out)
    assert isinstance(model.model, Int8Network) and model.classes == CLASSES and model.config is None
    assert model.preprocess == load_model(source).preprocess
    ours, theirs = (metaformer.Predictor(path, device="cpu")(pets / "val") for path in (out, source))
    assert [(found.path, found.label) for found in ours] == [(found.path, found.label) for found in theirs]


def test_a_changed_file_is_noticed(out: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(out, tmp_path / "copy")
    stored = bytearray((copied / "network.bin").read_bytes())
    stored[0] ^= 1
    (copied / "network.bin").write_bytes(stored)
    with pytest.raises(WeightsError, match=r"network\.bin: damaged"):
        load_model(copied)


def test_another_format_is_refused_with_the_version_that_wrote_it(out: Path, tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        for file in ("network.xml", "network.bin"):
            shutil.copy(out / file, directory)
        state = json.loads((out / STATE).read_text())
        (directory / STATE).write_text(json.dumps({**state, "format": FORMAT - 1, "version": "0.0.9"}))

    old = write_directory(tmp_path / "old", fill)
    with pytest.raises(
        VersionError, match=rf"int8 network format {FORMAT - 1} of metaformer 0\.0\.9.*quantize"
    ):
        load_model(old)


def test_int8_is_not_quantized_again(out: Path, pets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8"):
        metaformer.quantize(out, pets, tmp_path / "again")


def test_invalid_options_and_targets(source: Path, pets: Path, tmp_path: Path) -> None:
    for field, value in (("images", 1), ("max_drop", 1.5)):
        with pytest.raises(ConfigError, match=field):
            metaformer.quantize(source, pets, tmp_path / "out", **{field: value})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        metaformer.quantize(source, pets, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
