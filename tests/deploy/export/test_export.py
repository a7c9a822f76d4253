"""Networks as ONNX and OpenVINO files."""

import ast
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import metaformer
from metaformer.cli import main
from metaformer.deploy.export.operators import OPSETS
from metaformer.deploy.export.write import WRITERS, export
from metaformer.errors import (
    ConfigError,
    MetaFormerError,
    OptimizeError,
    OutputError,
    SizeError,
    TrainingError,
    WeightsError,
)
from metaformer.inference.evaluate import evaluate
from metaformer.inference.exported import KEY, load_exported, open_exported
from metaformer.inference.model import load_model
from metaformer.models.detection.structures import Detections
from metaformer.tasks import TASKS
from metaformer.tasks.base import LoadedModel
from metaformer.weights.hub import save_pretrained
from toys import TINY, block_scene

OUTPUTS = {
    "classify": ["probabilities"],
    "multilabel": ["probabilities"],
    "segment": ["labels", "probabilities"],
    "detect": ["boxes", "scores", "classes", "count", "masks"],
}
NAMES = ("a 'quoted' \"name\"", "猫", "a=b, c", "naïve", "Ω;", "five", "six", "seven", "eight", "nine")
"""Class names that a format could stumble over."""
OWN_MIXER = """
from torch import nn
from metaformer.mixers import MIXERS

@MIXERS.register("{name}")
class Drift(nn.Module):
    def __init__(self, dim):
        super().__init__()

    def forward(self, x):
        return x.roll(1, 2) - x.mean(3, keepdim=True)
"""


@pytest.fixture(scope="module")
def sources(untrained: dict[str, Path], detect_run: Path) -> dict[str, Path]:
    """A network of each task; only a trained detector finds anything."""
    return {**untrained, "detect": detect_run}


class Files(dict[str, Path]):
    """An ONNX file of each task, written when a test asks for it."""

    def __init__(self, sources: Mapping[str, Path], folder: Path) -> None:
        self.sources, self.folder = sources, folder

    def __missing__(self, task: str) -> Path:
        file = self.folder / f"{task}.onnx"
        self[task] = export(self.sources[task], file, probabilities=task == "segment").path
        return self[task]


@pytest.fixture(scope="module")
def files(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(sources, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def openvino_file(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(sources["classify"], tmp_path_factory.mktemp("openvino") / "digits.xml").path


def tiny(**fields: Any) -> nn.Module:
    torch.manual_seed(0)
    return metaformer.create_model("poolformer_s12", num_classes=10, **{**TINY, **fields})


@pytest.mark.parametrize("task", TASKS)
def test_metrics_are_those_of_the_network(
    task: str, sources: Any, files: Any, demo: Path, blocks: Path
) -> None:
    data = blocks if task == "detect" else demo / task
    options = {"workers": 0, "batch_size": 8}
    theirs = evaluate(sources[task], data, **options)
    ours = evaluate(files[task], data, **options)
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, abs=5e-4), name


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_those_of_the_network(task: str, sources: Any, files: Any, demo: Path) -> None:
    images = sorted((demo / "classify").rglob("*.png"))[:3]
    odd = [np.asarray(Image.open(images[0]).convert("RGB").resize(size)) for size in ((90, 70), (61, 127))]
    for image in (*images, *odd):
        (theirs,) = metaformer.Predictor(sources[task], workers=0)(image)
        (ours,) = metaformer.Predictor(files[task], workers=0)(image)
        close(theirs.to_dict(), ours.to_dict())


def test_files_have_no_gradients_to_explain_by(files: Any, openvino_file: Path, tmp_path: Path) -> None:
    for file in (files["classify"], openvino_file):
        for refused in (
            lambda file=file: metaformer.explain(file, np.zeros((64, 64, 3), np.uint8), tmp_path / "out"),
            lambda file=file: metaformer.measure_receptive_field(file),
        ):
            with pytest.raises(
                ConfigError, match="an exported file has no gradients to explain by: give the"
            ):
                refused()
    assert not (tmp_path / "out").exists()


def close(theirs: Any, ours: Any) -> None:
    """Plain values are equal, their numbers nearly."""
    if isinstance(theirs, Mapping):
        assert theirs.keys() == ours.keys()
        for key in theirs:
            close(theirs[key], ours[key])
    elif isinstance(theirs, list | tuple):
        assert len(theirs) == len(ours)
        for one, other in zip(theirs, ours, strict=True):
            close(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=2e-2 if abs(theirs) > 1 else 1e-4)
    else:
        assert theirs == ours


@pytest.mark.parametrize("task", TASKS)
def test_metadata_in_three_dialects(task: str, sources: Any, files: Any) -> None:
    model = onnx.load(files[task])
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == OUTPUTS[task]
    wanted = ["images", "sizes"] if task in ("segment", "detect") else ["images"]
    assert [value.name for value in model.graph.input] == wanted
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    card, network = json.loads(metadata[KEY]), load_model(sources[task])
    assert (card["task"], card["classes"]) == (task, list(network.classes or ()))
    assert card["preprocess"] == json.loads(json.dumps(network.preprocess.to_dict()))
    assert ast.literal_eval(metadata["names"]) == dict(enumerate(network.class_names))
    assert metadata["task"] == task
    assert metadata["model_info model_type"]
    assert all(
        0 <= value <= TASKS[task].export.tolerance(name, "float32") for name, value in card["parity"].items()
    )
    beside = json.loads(files[task].with_suffix(".json").read_text())
    assert beside.pop("files") == {files[task].name: hashlib.sha256(files[task].read_bytes()).hexdigest()}
    assert beside == card


@pytest.mark.parametrize("task", TASKS)
def test_a_file_says_nothing_of_the_machine_that_wrote_it(task: str, files: Any) -> None:
    content = files[task].read_bytes()
    for word in (os.getcwd(), metaformer.__file__, torch.__file__):
        assert str(Path(word).parent).encode() not in content


def test_a_mixed_batch_equals_single_images(files: Any, blocks: Path) -> None:
    """Whatever lies beyond an image in a padded batch, and wherever an empty one stands."""
    network = load_exported(files["detect"])
    found = sorted(file for file in blocks.rglob("*") if file.suffix in (".png", ".jpg"))
    sizes = ((150, 120), (96, 180))
    images = [
        np.asarray(Image.open(file).convert("RGB").resize(size))
        for file, size in zip(found, sizes, strict=False)
    ]
    images.append(np.zeros((100, 80, 3), np.uint8))
    singles = []
    for fill in (0, 255):
        for order in ((0, 1, 2), (2, 0, 1), (0, 2, 1)):
            batch = torch.full((3, 3, 192, 192), float(fill))
            sizes = [images[i].shape[:2] for i in order]
            for row, i in zip(batch, order, strict=True):
                height, width = images[i].shape[:2]
                row[:, :height, :width] = torch.from_numpy(images[i].copy()).permute(2, 0, 1)
            found = network.forward(batch, sizes)
            singles.append([found[order.index(i)] for i in range(3)])
    assert sum(map(len, singles[0]))
    for other in singles[1:]:
        for one, again in zip(singles[0], other, strict=True):
            assert torch.equal(one.labels, again.labels)
            torch.testing.assert_close(one.boxes, again.boxes, atol=1e-3, rtol=0)
            torch.testing.assert_close(one.scores, again.scores, atol=1e-5, rtol=0)


def crowded(number: int, random: np.random.RandomState) -> np.ndarray[Any, Any]:
    """Nine scenes side by side, all of one size."""
    scenes = [block_scene(4 * i + number % 3, random)[0][:36, :36] for i in range(9)]
    return np.concatenate([np.concatenate(scenes[i : i + 3]) for i in (0, 3, 6)], axis=1)


def detections(model: LoadedModel, images: Sequence[Image.Image]) -> list[Detections]:
    """Objects of images as one batch, padded to 128×128 pixels: norms are over the padding, too."""
    tensors = [model.preprocess.transform()(image) for image in images]
    x = torch.stack([F.pad(one, (0, 128 - one.shape[2], 0, 128 - one.shape[1])) for one in tensors])
    with torch.inference_mode():
        found: list[Detections] = model.forward(x, [(one.shape[1], one.shape[2]) for one in tensors])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_detectors_find_the_same(suffix: str, detect_run: Path, tmp_path: Path) -> None:
    """On 50 images, alone and in batches with an empty one first, in the middle and last."""
    limit, random = 5, np.random.RandomState(7)
    scenes = [block_scene(i, random)[0] for i in range(40)] + [crowded(i, random) for i in range(5)]
    random.shuffle(scenes)
    images = [Image.fromarray(scene) for scene in scenes]
    empty = [Image.new("RGB", (40 + 9 * i, 44), (20 * i, 30, 90)) for i in range(5)]
    network = load_model(detect_run).to(torch.device("cpu"), "none")
    file = load_exported(export(detect_run, tmp_path / f"net{suffix}", max_objects=limit).path)
    expected = [detections(network, [image])[0] for image in [*images, *empty]]
    assert sum(len(one) > limit for one in expected) >= 5 and not any(map(len, expected[45:]))
    alone = [detections(file, [image])[0] for image in [*images, *empty]]
    for theirs, ours in zip(expected, alone, strict=True):
        assert_same_objects(theirs, ours, limit)
    for start in range(0, 45, 9):
        for place in (0, 4, 9):
            rows = [*range(start, start + 9)]
            rows.insert(place, 45 + start // 9)
            batch = detections(file, [[*images, *empty][i] for i in rows])
            for i, found in zip(rows, batch, strict=True):
                assert_same_objects(alone[i], found, limit)


def assert_same_objects(theirs: Detections, ours: Detections, limit: int) -> None:
    """Lists of at most `limit` objects: classes equal, boxes, scores and masks nearly."""
    count = min(len(theirs), limit)
    assert len(ours) == count and torch.equal(ours.labels, theirs.labels[:count])
    torch.testing.assert_close(ours.boxes, theirs.boxes[:count], atol=0.01, rtol=0)
    torch.testing.assert_close(ours.scores, theirs.scores[:count], atol=1e-4, rtol=0)
    if theirs.masks is not None:
        assert ours.masks is not None
        same = (ours.masks >= 0.5) == (theirs.masks[:count] >= 0.5)
        assert not count or same.float().mean() >= 0.999


@pytest.mark.slow
def test_fewer_objects_than_there_are(detect_run: Path, blocks: Path, tmp_path: Path) -> None:
    """The file has the surest; it is compared with these alone."""
    files = {
        limit: export(detect_run, tmp_path / f"{limit}.onnx", max_objects=limit).path for limit in (1, 9)
    }
    image = Image.open(sorted(blocks.rglob("*.png"))[2]).convert("RGB")
    few, many = (detections(load_exported(file), [image])[0] for file in files.values())
    assert len(few) == 1 < len(many) and torch.equal(few.scores, many.scores[:1])


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_own_mixer_and_names_in_any_script(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mixer's file is needed to write an exported file, and not to use it."""
    mixer = f"drifts_in_a_test_of_{suffix[1:]}"
    own, source, names, images = (tmp_path / name for name in ("own.py", "net", "names.txt", "images"))
    own.write_text(OWN_MIXER.format(name=mixer))
    names.write_text("\n".join(NAMES), encoding="utf-8")
    save_pretrained(tiny(), source)
    config = source / "config.json"
    config.write_text(config.read_text().replace('"pooling"', f'"{mixer}"'))  # neither has weights
    images.mkdir()
    random = np.random.default_rng(0)
    for size in ((61, 127), (90, 70), (64, 64)):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(images / f"{size[0]}.png")

    file, table = tmp_path / f"net{suffix}", tmp_path / "found.csv"
    command = ["export", str(source), str(file), "--class-names", str(names)]
    assert main(command) == 1
    assert f"unknown mixer '{mixer}'" in capsys.readouterr().err
    assert main([*command, "--import", str(own)]) == 0
    assert load_exported(file).classes == NAMES
    assert main(["predict", str(file), str(images), "--out", str(table)]) == 0
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    expected = metaformer.Predictor(source, class_names=NAMES, workers=0)(images)
    assert [row["label"] for row in rows] == [one.label for one in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_openvino_computes_the_same(openvino_file: Path, sources: Any, demo: Path) -> None:
    theirs = evaluate(sources["classify"], demo / "classify", workers=0)
    ours = evaluate(openvino_file, demo / "classify", workers=0)
    assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-3)
    _, card = open_exported(openvino_file)
    assert card.content.sha256 == hashlib.sha256(openvino_file.with_suffix(".bin").read_bytes()).hexdigest()


def test_a_fixed_batch_takes_any_number_of_images(tmp_path: Path) -> None:
    model = tiny().eval()
    network = load_exported(
        export(model, tmp_path / "fixed.onnx", batch=2, image_size=64, input="float").path
    )
    for count in (0, 1, 2, 5):
        images = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            expected = model(images).log_softmax(1)
        torch.testing.assert_close(network.forward(images), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(SizeError, match=r"\(3, 64, 64\).*image_size"):
        network.forward(torch.zeros(2, 3, 32, 64))


def test_half_precision(tmp_path: Path) -> None:
    full, half = (
        export(tiny(), tmp_path / f"{dtype}.onnx", image_size=64, dtype=dtype) for dtype in ("fp32", "fp16")
    )
    assert half.card.dtype == "float16"
    weights = [
        sum(len(one.raw_data) for one in onnx.load(file.path).graph.initializer) for file in (full, half)
    ]
    assert weights[1] < 0.55 * weights[0]


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_versions_of_operators(opset: int, tmp_path: Path) -> None:
    file = export(tiny(), tmp_path / "net.onnx", image_size=64, opset=opset).path
    assert {entry.version for entry in onnx.load(file).opset_import if not entry.domain} == {opset}


def test_a_backbone_gives_features(tmp_path: Path) -> None:
    backbone = metaformer.create_model("poolformer_s12", features_only=True, **TINY)
    file = export(backbone, tmp_path / "backbone.onnx", input="float").path
    runtime, card = open_exported(file)
    images = torch.randn(2, 3, 75, 96)
    with torch.no_grad():
        expected = backbone.eval()(images)
    found = runtime.run({"images": images.numpy()})
    assert card.outputs == tuple(found)
    for theirs, ours in zip(expected, found.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="task"):
        load_exported(file)


def test_a_network_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises((OptimizeError, TrainingError)):
        export(model, tmp_path / "net.onnx", image_size=64)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "error", "word"),
    [
        ("net.tflite", {}, ConfigError, "net.tflite.*onnx"),
        ("net.onnx", {"opset": 9}, ConfigError, "opset is 9"),
        ("net.onnx", {"batch": 0}, ConfigError, "batch is 0"),
        ("net.onnx", {"dtype": "fp8"}, ConfigError, "dtype"),
        ("net.onnx", {"input": "bytes"}, ConfigError, "input"),
        ("net.onnx", {"image_size": 0}, ConfigError, "image_size"),
        ("net.onnx", {"image_size": (64, 32)}, ConfigError, "image_size"),
        ("net.onnx", {"max_objects": 5}, ConfigError, "max_objects"),
        ("net.onnx", {"probabilities": True}, ConfigError, "probabilities"),
        ("folder.onnx", {}, OutputError, "folder.onnx"),
    ],
)
def test_bad_values(name: str, options: Any, error: type[MetaFormerError], word: str, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(error, match=word):
        export(tiny(), tmp_path / name, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize("damage", ["cut", "metadata", "weights", "empty", "other schema", "another's json"])
def test_damaged_files_are_refused_by_name(damage: str, files: Any, tmp_path: Path) -> None:
    source, file = files["classify"], tmp_path / "net.onnx"
    content = source.read_bytes()
    model = onnx.load_from_string(content)
    if damage == "metadata":
        del model.metadata_props[:]
    if damage == "other schema":
        (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
        entry.value = json.dumps({**json.loads(entry.value), "schema": 99})
    if damage == "weights":
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights.raw_data = bytes(len(weights.raw_data))
    changed: Mapping[str, Callable[[], bytes]] = {
        "cut": lambda: content[: len(content) // 2],
        "empty": lambda: b"",
        "another's json": lambda: content,
    }
    file.write_bytes(changed.get(damage, model.SerializeToString)())
    if damage == "another's json":
        beside = json.loads(source.with_suffix(".json").read_text())
        file.with_suffix(".json").write_text(json.dumps({**beside, "files": {file.name: "0" * 64}}))
    with pytest.raises(WeightsError, match=r"net\.(onnx|json)"):
        load_exported(file)


def test_openvino_files_whose_metadata_are_no_text_are_refused(openvino_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(openvino_file, tmp_path))
    shutil.copy(openvino_file.with_suffix(".bin"), tmp_path)
    content = file.read_bytes()
    place = content.index(b"schema")
    file.write_bytes(content[:place] + b"\xbb" + content[place + 1 :])
    with pytest.raises(WeightsError, match=file.name):
        load_exported(file)


def test_openvino_files_are_refused_without_their_weights(openvino_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(openvino_file, tmp_path))
    with pytest.raises(WeightsError, match=r"digits\.bin"):
        load_exported(file)
    data = bytearray(openvino_file.with_suffix(".bin").read_bytes())
    data[100] ^= 1
    file.with_suffix(".bin").write_bytes(data)
    with pytest.raises(WeightsError, match=r"digits\.xml"):
        load_exported(file)


def test_the_command(sources: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits.onnx"
    assert main(["export", str(sources["classify"]), str(out), "--batch", "1", "--image-size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "digits.onnx: poolformer_n, 1 images at once of 64×64 pixels" in printed
    assert main(["export", str(sources["classify"]), str(out), "--sizes", "64", "128"]) != 0
    assert "--sizes" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "missing.onnx"), str(tmp_path)]) != 0
    assert "missing.onnx" in capsys.readouterr().err
