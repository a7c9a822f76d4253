"""Quantization to 8 bits: files of all tasks."""

import ctypes
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metaformer
from metaformer.checkpoint.checkpoint import write_state
from metaformer.checkpoint.manifest import write_directory
from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.deploy.export.source import ExportSource
from metaformer.deploy.export.write import draw_up
from metaformer.deploy.int8.calibration import calibration_inputs, in_torch
from metaformer.deploy.int8.graph import GRAPHS, Limit, load_nncf
from metaformer.deploy.int8.quantize import heads_of
from metaformer.deploy.int8.report import Figures, QuantizeReport
from metaformer.errors import ConfigError, MissingPackage, OptimizeError, OutputError, WeightsError
from metaformer.inference.exported import INT8, load_exported
from metaformer.inference.model import describe_network, load_model
from metaformer.tasks.exported import ExportedNetwork, ExportOptions
from metaformer.weights.hub import save_pretrained

for package in ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino"):
    pytest.importorskip(package)

CLASSES = ("ant", "bee", "cat")
SUFFIXES = tuple(GRAPHS)


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """OpenVINO and NNCF silence the root logger, and free the stack that they give signal handlers."""
    before = process_state()
    yield
    assert process_state() == before


def process_state() -> tuple[Any, ...]:
    root, stack = logging.getLogger(), (ctypes.c_size_t * 3)()
    ctypes.CDLL(None).sigaltstack(None, stack)
    return root.level, [handler.level for handler in root.handlers], list(stack), root.manager.disable


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


@pytest.fixture(scope="module", params=SUFFIXES)
def written(
    request: pytest.FixtureRequest, source: Path, pets: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, QuantizeReport]:
    """The classifier in int8, and the report."""
    file = tmp_path_factory.mktemp("quantized") / f"int8{request.param}"
    return file, metaformer.quantize(source, pets, file, images=20, batch_size=4)


def test_the_report_is_what_the_file_computes(
    source: Path, pets: Path, written: tuple[Path, QuantizeReport]
) -> None:
    file, report = written
    assert (report.calibrated, report.images, report.metric) == (20, 15, "top1")
    for network, figures in ((source, report.float32), (file, report.int8)):
        evaluated = metaformer.evaluate(network, pets, batch_size=4, workers=0, device="cpu")
        assert evaluated.metrics == pytest.approx(figures.metrics, abs=1e-6)
    assert report.products == 13 and not report.float_products  # stem, 3 × down, 4 × 2, head
    assert report.float32.metrics["top1"] == report.int8.metrics["top1"] == report.agreement == 1.0
    assert report.drop == 0 and 0 < report.differences["probabilities"] < 0.5
    weights = [one for one in file.parent.iterdir() if one.suffix != ".json"]
    assert report.int8.bytes == sum(one.stat().st_size for one in weights)
    assert json.loads(json.dumps(report.to_dict()))["int8"]["metrics"]["top1"] == 1.0


def test_the_file_is_used_as_a_run_is(source: Path, pets: Path, written: tuple[Path, QuantizeReport]) -> None:
    file, report = written
    model = load_exported(file)
    assert isinstance(model.model, ExportedNetwork) and model.classes == CLASSES
    card = model.model.card
    assert (card.dtype, card.batch, card.image_size) == (INT8, None, None)
    assert card.parity == {"drop": 0, "agreement": 1, **report.differences}
    for shape in ((1, 3, 32, 32), (3, 3, 40, 57)):  # any number of images of any size
        assert model.forward(torch.full(shape, 100.0)).shape == (shape[0], 3)
    with torch.autocast("cpu"), pytest.raises(ConfigError, match="amp"):
        model.forward(torch.zeros(1, 3, 32, 32))
    ours, theirs = (metaformer.Predictor(path, device="cpu")(pets / "val") for path in (file, source))
    assert [(found.path, found.label) for found in ours] == [(found.path, found.label) for found in theirs]


def test_int8_is_not_quantized_again(
    pets: Path, written: tuple[Path, QuantizeReport], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="exported file"):
        metaformer.quantize(written[0], pets, tmp_path / "again.xml")


def test_what_an_earlier_version_wrote_is_refused(tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        (directory / "network.xml").write_text("<net/>")
        write_state(directory, {"card": {"task": "classify", "int8": "network.xml"}, "config": None})

    with pytest.raises(WeightsError, match=r"earlier version.*quantize"):
        load_model(write_directory(tmp_path / "old", fill))


SLOW = [("multilabel", ".xml"), ("segment", ".onnx"), ("detect", ".xml"), ("detect", ".onnx")]


@pytest.mark.parametrize(
    ("task", "suffix"),
    [
        *[("multilabel", ".onnx"), ("segment", ".xml")],
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_other_tasks(task: str, suffix: str, untrained: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / f"int8{suffix}"
    report = metaformer.quantize(untrained[task], None, file, images=4)
    assert report.calibrated == 4 and report.products >= 13 and len(report.float_products) <= 1
    assert 0 < report.compared <= 50 and report.agreement > 0.8
    config = load_model(untrained[task]).config
    assert config is not None
    found = metaformer.evaluate(file, config.data.root, workers=0, device="cpu").metrics
    assert found[report.metric] == pytest.approx(report.int8.metrics[report.metric], abs=1e-6)


@pytest.fixture
def fragile(source: Path, tmp_path: Path) -> Path:
    """The same, but classes differ by less in the last layer's weights than int8 resolves."""
    network = load_model(source).model
    with torch.no_grad():
        network.head.fc.weight += 300.0  # type: ignore[union-attr, operator]
    save_pretrained(network, tmp_path / "net")  # type: ignore[arg-type]
    return tmp_path / "net"


def test_max_drop_leaves_the_head_in_floating_point(fragile: Path, pets: Path, tmp_path: Path) -> None:
    report = metaformer.quantize(fragile, pets, tmp_path / "int8.onnx", images=12, max_drop=0.01)
    assert report.float_products == ("head.fc",) and report.drop <= 0.01


@pytest.mark.slow
def test_a_limit_leaves_in_floating_point_what_loses_most() -> None:
    """Of a network whose many classes are closer together than int8 resolves."""
    torch.manual_seed(0)
    network = metaformer.create_model("poolformer_s12", **{**TINY, "num_classes": 400}).eval()
    for value in network.parameters():
        if value.ndim < 2:  # a LayerScale as it begins hides its layers
            torch.nn.init.uniform_(value.data, 0.2, 1.0)
    noise = torch.randint(0, 256, (60, 1, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        model = describe_network(network)
        graph = model.spec.export.graph(network, model.preprocess, ExportOptions())
        network.head.fc.bias -= network(graph.normalized(noise[:, 0])).mean(0)  # as likely as each other
    draft = draw_up(ExportSource.of_model(model), ExportOptions())
    inputs = [{"images": image} for image in noise.numpy()]
    labels = [int(in_torch(draft, model)[1].run(one)["probabilities"].argmax()) for one in inputs]
    form = GRAPHS[".xml"].read(draft.body)
    assert not form.quantized(inputs, [], None).float_products()
    assert form.quantized(inputs, [], Limit(labels, 0.001)).float_products()


def test_more_than_max_drop_is_refused(
    fragile: Path, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaformer.deploy.int8.quantize.heads_of", lambda network: ["stem"])
    with pytest.raises(OptimizeError, match=r"top1 falls by 0\.\d.*max_drop 0\.01, with stem.*calibrate"):
        metaformer.quantize(fragile, pets, tmp_path / "int8.onnx", images=12, max_drop=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_heads_of_all_tasks(untrained: dict[str, Path]) -> None:
    heads = {task: heads_of(load_model(checkpoint).model) for task, checkpoint in untrained.items()}
    assert heads["classify"] == heads["multilabel"] == ["head"]
    assert heads["segment"] == ["neck", "head"]
    assert "backbone" not in heads["detect"] and {"neck", "box_head"} <= set(heads["detect"])


def test_invalid_options_and_targets(source: Path, pets: Path, tmp_path: Path) -> None:
    for field, value in (("images", 1), ("max_drop", 1.5)):
        with pytest.raises(ConfigError, match=field):
            metaformer.quantize(source, pets, tmp_path / "out.xml", **{field: value})
    with pytest.raises(ConfigError, match=r"\.xml or \.onnx"):
        metaformer.quantize(source, pets, tmp_path / "out")
    (tmp_path / "out.xml").mkdir()
    with pytest.raises(OutputError, match=r"out\.xml"):
        metaformer.quantize(source, pets, tmp_path / "out.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["out.xml"]


TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "image_size": (32, 32), "num_classes": 5}
DWCONVS = [f"stages.{i}.blocks.0.token_mixer.dwconv" for i in range(4)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_depthwise_convolutions_alone_stay_in_floating_point(suffix: str, pets: Path) -> None:
    model = describe_network(metaformer.create_model("convformer_s18", **TINY).eval())
    draft = draw_up(ExportSource.of_model(model), ExportOptions())
    graph = GRAPHS[suffix].read(draft.body)
    inputs = calibration_inputs(draft, model, ImageFolder(pets, "train"), 3).inputs
    assert [one["images"].dtype.name for one in inputs] == ["uint8"] * 3
    int8 = graph.quantized(inputs, [], None)
    assert int8.float_products() == DWCONVS
    names = list(graph.products().values())
    assert graph.float_products() == names  # the graph itself is unchanged
    assert {"stem.conv", "stages.0.blocks.0.mlp.fc1", "stages.3.blocks.0.mlp.fc2"} <= set(names)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[int8\]"):
        load_nncf()


REPORT = QuantizeReport(
    name="poolformer_n",
    file="int8.xml",
    calibrated=300,
    images=355,
    metric="top1",
    float32=Figures({"top1": 0.98028, "loss": 0.17703}, 8_280_000),
    int8=Figures({"top1": 0.9775, "loss": 0.1857}, 2_490_000),
    drop=0.00278,
    agreement=0.9972,
    differences={"probabilities": 0.0712},
    compared=12,
    products=30,
    float_products=tuple(f"stages.0.blocks.{i}.token_mixer" for i in range(8)),
    rest="bfloat16",
)


def test_text() -> None:
    lines = REPORT.text().splitlines()
    assert lines[1].split() == ["top1", "0.9803", "0.9775"]
    assert lines[2].split() == ["loss", "0.1770", "0.1857"]
    assert lines[3].split() == ["megabytes", "8.28", "2.49"]
    assert "0.0028 of top1 on 355 images" in REPORT.text() and "99.72%" in REPORT.text()
    products = next(line for line in lines if line.startswith("int8 "))
    assert "22 of 30 products; not stages.0.blocks.0.token_mixer, " in products
    assert products.endswith("stages.0.blocks.5.token_mixer and 2 more (all in the JSON)")


def test_json(tmp_path: Path) -> None:
    values = json.loads(REPORT.save(tmp_path / "report.json").read_text())
    assert values["int8"] == {"metrics": {"top1": 0.9775, "loss": 0.1857}, "bytes": 2_490_000}
    assert len(values["float_products"]) == 8 and REPORT.metrics["int8_top1"] == 0.9775
