"""Quantization to 8 bits."""

import ctypes
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaformer
from metaformer.checkpoint.checkpoint import FORMAT, STATE
from metaformer.checkpoint.manifest import write_directory
from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.deploy.int8.accuracy import Accuracy, QuantizeReport, compare
from metaformer.deploy.int8.graph import calibrate, float_products, load_nncf, make_graph
from metaformer.errors import (
    ConfigError,
    MissingPackage,
    OptimizeError,
    OutputError,
    VersionError,
    WeightsError,
)
from metaformer.inference.int8_model import Int8Network, load_openvino
from metaformer.inference.model import load_model
from metaformer.tasks.classification.evaluate import ClassificationEvaluation
from metaformer.weights.hub import save_pretrained

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """OpenVINO and NNCF silence the root logger, and free the stack that they give signal handlers."""
    before = process_state()
    yield
    assert process_state() == before


def process_state() -> tuple[Any, ...]:
    root, stack = logging.getLogger(), (ctypes.c_size_t * 3)()
    ctypes.CDLL(None).sigaltstack(None, stack)
    return root.level, [handler.level for handler in root.handlers], list(stack)


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


TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "image_size": (32, 32), "num_classes": 5}
IMAGES = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
INPUTS = list(IMAGES.unsqueeze(1).numpy())


def trained(name: str) -> nn.Module:
    """A tiny network whose LayerScale hides nothing."""
    torch.manual_seed(1)
    model = metaformer.create_model(name, **TINY)
    for value in model.parameters():
        if value.ndim < 2:
            nn.init.uniform_(value.data, 0.2, 1.0)
    return model.eval()


def graph_of(model: nn.Module) -> tuple[Any, list[int]]:
    """A network's graph, and labels by which it is always right."""
    with torch.inference_mode():
        return make_graph(model, IMAGES[:2]), model(IMAGES).argmax(dim=1).tolist()


SLOW = ("caformer_s18", "cyclemlp_b1", "randformer_s12")


@pytest.mark.parametrize(
    "name", ["poolformer_s12", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_same_logits_at_another_batch_size_and_products_named_after_modules(name: str) -> None:
    model = trained(name)
    graph: Any = make_graph(model, IMAGES[:2])
    network = load_openvino().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = model(IMAGES[:4])
    torch.testing.assert_close(
        torch.from_numpy(network(IMAGES[:4].numpy())[0]), expected, rtol=1e-3, atol=1e-3
    )
    products, left = float_products(graph)
    assert products == left  # nothing is quantized yet
    own = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {"stem.conv", "stages.0.blocks.0.mlp.fc1", "stages.3.blocks.0.mlp.fc2"} <= own
    assert own <= set(products)


class Bessel(nn.Module):
    """An operation that OpenVINO lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


class Counting(nn.Module):
    """Another result at each call, which no graph can reproduce."""

    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return x.mean((2, 3)) * len(self.calls)


def test_what_openvino_cannot_convert_is_refused() -> None:
    level = logging.getLogger().level
    with pytest.raises(OptimizeError, match=r"Bessel: .*bessel_j0"):
        make_graph(Bessel(), IMAGES[:2])
    assert logging.getLogger().level == level
    with pytest.raises(OptimizeError, match="Counting differs"):
        make_graph(Counting(), IMAGES[:2])


def test_depthwise_convolutions_alone_stay_in_floating_point() -> None:
    graph, labels = graph_of(trained("convformer_s18"))
    products, left = float_products(calibrate(graph, INPUTS, labels, None))
    assert left == [f"stages.{i}.blocks.0.token_mixer.dwconv" for i in range(4)] and len(products) > 20
    assert float_products(graph)[1] == products  # the graph itself is unchanged


class Fragile(nn.Module):
    """Two products; the first one's classes are closer together than int8 resolves."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 400, 32)
        self.narrow = nn.Linear(400, 400, bias=False)
        nn.init.eye_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x).flatten(1))


def test_max_drop_leaves_products_in_floating_point() -> None:
    torch.manual_seed(0)
    graph, labels = graph_of(Fragile().eval())
    assert not float_products(calibrate(graph, INPUTS, labels, None))[1]
    assert float_products(calibrate(graph, INPUTS, labels, 0.001))[1]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[int8\]"):
        load_nncf()


REPORT = QuantizeReport(
    name="poolformer_n",
    directory="out",
    calibrated=300,
    images=355,
    float32=Accuracy(0.98028, 0.17703, 8_280_000),
    int8=Accuracy(0.9775, 0.1857, 2_490_000),
    agreement=0.9972,
    mean_difference=0.07,
    largest_difference=0.802,
    largest_logit=5.942,
    products=30,
    float_products=tuple(f"stages.0.blocks.{i}.token_mixer" for i in range(8)),
    rest="bfloat16",
)


def original(images: Tensor) -> Tensor:
    """Logits of dark, medium and bright."""
    gray = images.mean((1, 2, 3))
    return torch.stack([0.235 - gray, torch.zeros_like(gray), gray - 0.51], dim=1)


def biased(images: Tensor) -> Tensor:
    """Another class for one of the seven images."""
    return original(images) + torch.tensor([0.0, 0.1, 0.0])


def test_a_comparison_counts_classes_and_differences(folder: ImageFolder) -> None:
    preprocess = Preprocess(8, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    evaluation = ClassificationEvaluation(folder, preprocess, batch_size=2)
    found = compare(evaluation, original, biased)
    assert (found.original.top1, found.quantized.top1, found.agreement) == (1.0, *[pytest.approx(6 / 7)] * 2)
    assert found.mean_difference == pytest.approx(0.1 / 3)
    assert found.largest_difference == pytest.approx(0.1)
    assert found.largest_logit == pytest.approx(0.51)  # of the black image
    same = compare(evaluation, original, original)
    assert (same.agreement, same.mean_difference, same.largest_difference) == (1.0, 0.0, 0.0)
    assert same.original.loss == same.quantized.loss


def test_text() -> None:
    lines = REPORT.text().splitlines()
    assert lines[1].split() == ["top-1", "98.03%", "97.75%"]
    assert lines[2].split() == ["loss", "0.1770", "0.1857"]
    assert lines[3].split() == ["megabytes", "8.28", "2.49"]
    assert "99.72% of 355 images" in REPORT.text()
    products = next(line for line in lines if line.startswith("int8 "))
    assert "22 of 30 products; not stages.0.blocks.0.token_mixer, " in products
    assert products.endswith("stages.0.blocks.5.token_mixer and 2 more (all in the JSON)")


def test_json(tmp_path: Path) -> None:
    values = json.loads(REPORT.save(tmp_path / "report.json").read_text())
    assert values["int8"] == {"top1": 0.9775, "loss": 0.1857, "bytes": 2_490_000}
    assert len(values["float_products"]) == 8
