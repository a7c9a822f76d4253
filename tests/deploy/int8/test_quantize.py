import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import metaformer
from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError, OutputError, WeightsError
from metaformer.inference.int8_model import Int8Network
from metaformer.inference.model import load_model
from metaformer.weights.hub import save_pretrained

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes told apart by color: 8 training and 5 validation images each."""
    root, draw = tmp_path_factory.mktemp("pets"), np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 5)):
        for channel, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.randint(0, 120, (40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 130
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def source(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier as `save_pretrained` writes it, its last layer fitted to the training images."""
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "image_size": (32, 32)}
    model = metaformer.create_model("poolformer_s12", num_classes=3, **tiny)
    model.pretrained_cfg.update(label_names=list(CLASSES), input_size=(3, 32, 32))
    folder, look = (
        ImageFolder(data, "train"),
        Preprocess.from_pretrained_cfg(model.pretrained_cfg).transform(),
    )
    with torch.no_grad():
        images = torch.stack([look(folder.image(i)) for i in range(len(folder))])
        features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        wanted = torch.eye(3)[torch.tensor(folder.labels)] * 6 - 2
        found = torch.linalg.lstsq(F.pad(features, (0, 1), value=1.0), wanted).solution
        model.head.fc.weight.copy_(found[:-1].T)
        model.head.fc.bias.copy_(found[-1])
    place = tmp_path_factory.mktemp("net") / "net"
    save_pretrained(model, place)
    return place


@pytest.fixture(scope="module")
def out(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    place = tmp_path_factory.mktemp("small") / "int8"
    report = metaformer.quantize(source, data, place, images=20, batch_size=4)
    assert json.loads((place / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    return place


def test_the_report_is_what_the_directory_computes(source: Path, data: Path, out: Path) -> None:
    told = json.loads((out / "report.json").read_text())
    assert (told["calibrated"], told["images"]) == (20, 15)
    for place, side in ((source, "float32"), (out, "int8")):
        report = metaformer.evaluate(place, data, batch_size=4, workers=0, device="cpu")
        assert report.metrics["top1"] == told[side]["top1"]
        assert report.metrics["loss"] == pytest.approx(told[side]["loss"], abs=1e-6)
    assert told["products"] == 13 and told["float_products"] == []  # stem, 3 × down, 4 × 2, head
    assert told["float32"]["top1"] == told["int8"]["top1"] == told["agreement"] == 1.0
    assert 0 < told["mean_difference"] < told["largest_difference"] < 0.5 * told["largest_logit"]
    size = sum((out / name).stat().st_size for name in ("network.xml", "network.bin"))
    assert told["int8"]["bytes"] == size


def test_it_is_used_as_a_run_is(source: Path, data: Path, out: Path) -> None:
    bundle = load_model(out)
    assert isinstance(bundle.model, Int8Network) and bundle.classes == CLASSES and bundle.config is None
    assert bundle.preprocess == load_model(source).preprocess
    images = data / "val"
    small, large = (metaformer.Predictor(place, device="cpu")(images) for place in (out, source))
    assert [found.path for found in small] == [found.path for found in large]
    assert [found.label for found in small] == [found.label for found in large]


def test_a_changed_file_is_seen(out: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    place.mkdir()
    for file in out.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    stored = bytearray((place / "network.bin").read_bytes())
    stored[0] ^= 1
    (place / "network.bin").write_bytes(stored)
    with pytest.raises(WeightsError, match=r"network\.bin: damaged"):
        load_model(place)


def test_int8_is_not_quantized_again(out: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is in int8 already"):
        metaformer.quantize(out, data, tmp_path / "again")


def test_what_cannot_be(source: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        metaformer.quantize(source, data, tmp_path / "out", images=1)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        metaformer.quantize(source, data, tmp_path / "out", max_drop=1.5)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        metaformer.quantize(source, data, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
