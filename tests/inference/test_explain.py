"""Explanations of networks of every task, on images."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from metaformer.errors import BadImage, ConfigError, OutputError, UnknownName
from metaformer.factory import create_detector, create_model, create_segmenter
from metaformer.inference.explain import Explainer, explain
from metaformer.inference.model import describe_network, load_model
from metaformer.inference.receptive_field import measure_receptive_field
from metaformer.inference.sheet import sheet_rows
from metaformer.mixers import MIXERS
from metaformer.models.detection.detector import Detector
from metaformer.tasks import TASKS
from metaformer.tasks.base import LoadedModel
from metaformer.weights.hub import save_pretrained

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
FINE = {**TINY, "stem_stride": 2, "down_stride": 2}
"""Features of 4×4 for images of 64 pixels."""


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 255, (96, 150, 3), np.uint8))


@pytest.fixture(scope="module")
def classifier() -> Explainer:
    torch.manual_seed(0)
    return Explainer(describe_network(create_model("poolformer_n", num_classes=3, **TINY)))


def squares(seed: int, count: int) -> tuple[list[Image.Image], Tensor, list[tuple[slice, slice]]]:
    """Gray noise with a red (class 0) or green square of 28 pixels, its class, and where it is."""
    random = np.random.RandomState(seed)
    images, labels, places = [], [], []
    for i in range(count):
        pixels = random.randint(60, 140, (64, 64, 3), np.uint8)
        top, left = random.randint(0, 36, 2)
        place = (slice(top, top + 28), slice(left, left + 28))
        pixels[(*place, i % 2)] = 250
        images.append(Image.fromarray(pixels))
        labels.append(i % 2)
        places.append(place)
    return images, torch.tensor(labels), places


@pytest.fixture(scope="module")
def learned() -> LoadedModel:
    """A classifier that has learned to tell red from green squares."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = create_model("poolformer_n", num_classes=2, norm="batch_norm", embed_norm="batch_norm", **FINE)
    model = describe_network(network).with_preprocess(image_size=64, crop=1.0)
    images, labels, _ = squares(0, 64)
    x = torch.stack([model.preprocess.transform()(image) for image in images])
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(60):
        rows = torch.arange(16) + 16 * (step % 4)
        optimizer.zero_grad()
        F.cross_entropy(network(x[rows]), labels[rows]).backward()
        optimizer.step()
    network.eval()
    assert (network(x).argmax(1) == labels).all()
    return model


def ranks(values: NDArray[np.float32]) -> NDArray[np.int64]:
    return values.ravel().argsort().argsort()


# --- maps


def test_heat_lies_on_the_image_where_the_classifier_looks(classifier: Explainer, noise: Image.Image) -> None:
    heats = [classifier.heat(noise, index) for index in range(3)]
    for heat in heats:
        assert heat.shape == (96, 150) and heat.dtype == np.float32
        assert heat.min() == 0 and heat.max() in (0, 1)
        assert not heat[:, :31].any() and not heat[:, -31:].any(), "beyond the crop the network sees nothing"
    assert max(heat.max() for heat in heats) == 1


@pytest.mark.parametrize(("width", "height", "crop"), [(150, 96, 0.9), (40, 71, 1.0), (333, 334, 0.6)])
def test_the_region_of_a_classifier_is_what_its_transform_leaves(
    width: int, height: int, crop: float
) -> None:
    """The gradients of a ramp across the image, as the network gets it, say where its input ends."""
    model = describe_network(create_model("poolformer_n", num_classes=3, **TINY))
    preprocess = model.with_preprocess(image_size=32, crop=crop, mean=(0, 0, 0), std=(1, 1, 1)).preprocess
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 255 / height, columns * 255 / width, rows * 0], axis=-1).astype(np.uint8)
    seen = preprocess.transform()(Image.fromarray(ramp))
    left, top, right, bottom = preprocess.input_region(width, height)
    tolerance = 2 * max(width, height) / 32
    assert seen[1, 0, 0] * width == pytest.approx(left, abs=tolerance)
    assert seen[1, 0, -1] * width == pytest.approx(right, abs=tolerance)
    assert seen[0, 0, 0] * height == pytest.approx(top, abs=tolerance)
    assert seen[0, -1, 0] * height == pytest.approx(bottom, abs=tolerance)
    assert right - left == pytest.approx(bottom - top, rel=0.05)


def test_heat_of_a_trained_network_lies_on_what_it_has_learned(learned: LoadedModel) -> None:
    explainer = Explainer(learned)
    images, labels, places = squares(1, 10)
    for image, label, place in zip(images, labels.tolist(), places, strict=True):
        (subject,) = explainer.find(image, 1)
        assert subject.index == label
        heat = explainer.heat(image, label, stage=2)
        assert heat[place].mean() > 1.5 * heat.mean()


def test_random_weights_from_the_top_change_the_map(learned: LoadedModel) -> None:
    images, labels, _ = squares(1, 10)
    explainer = Explainer(learned)
    trained = [
        explainer.heat(image, label, stage=2) for image, label in zip(images, labels.tolist(), strict=True)
    ]
    saved = {name: value.clone() for name, value in learned.model.state_dict().items()}
    network: nn.Module = learned.model
    torch.manual_seed(1)
    correlations = []
    try:
        for part in (
            "head",
            "stages.3",
            "stages.2",
        ):  # one after another, as in https://arxiv.org/abs/1810.03292
            for parameter in network.get_submodule(part).parameters():
                nn.init.normal_(parameter, std=0.2)
            changed = [
                explainer.heat(image, label, stage=2)
                for image, label in zip(images, labels.tolist(), strict=True)
            ]
            pairs = zip(trained, changed, strict=True)
            correlations.append(np.mean([np.corrcoef(ranks(a), ranks(b))[0, 1] for a, b in pairs]))
    finally:
        network.load_state_dict(saved)
    print("rank correlation after randomizing head, stage 3, stage 2:", correlations)
    assert correlations[-1] <= 0.5 and min(correlations) <= 0.5


def dense(kind: str, classes: int = 3) -> LoadedModel:
    """A small segmenter or detector of random weights, for images of about 150×100 pixels."""
    torch.manual_seed(0)
    backbone = create_model("poolformer_n", **TINY).config
    create = create_segmenter if kind in ("upernet", "semantic_fpn") else create_detector
    network = create(kind, backbone, classes, fpn_dim=16, head_dim=16)
    return describe_network(network).with_preprocess(long_side=150, short_side=96)


@pytest.mark.parametrize("kind", ["classifier", "semantic_fpn", "upernet", "mask_rcnn", "retinanet"])
def test_an_image_of_one_color_has_a_flat_map(kind: str, classifier: Explainer) -> None:
    explainer = classifier if kind == "classifier" else Explainer(dense(kind))
    box = None if kind == "classifier" else (10.0, 10.0, 60.0, 60.0)
    flat = explainer.heat(Image.new("RGB", (130, 100), (90, 140, 30)), 1, box)
    assert flat.shape == (100, 130) and not flat.any() and not np.isnan(flat).any()
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (100, 130, 3), np.uint8))
    maps = [explainer.heat(picture, index, box, stage) for index in range(3) for stage in range(4)]
    assert any(one.max() == 1 for one in maps) and all(one.shape == (100, 130) for one in maps)


@pytest.mark.parametrize("kind", ["classifier", "semantic_fpn", "mask_rcnn", "retinanet"])
def test_maps_are_the_same_where_gradients_are_off(
    kind: str, classifier: Explainer, noise: Image.Image
) -> None:
    """A server predicts in inference mode; in half precision the map is nearly the same."""
    explainer = classifier if kind == "classifier" else Explainer(dense(kind))
    box = None if kind == "classifier" else (10.0, 10.0, 60.0, 60.0)
    heat = explainer.heat(noise, 1, box, stage=1)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            np.testing.assert_array_equal(explainer.heat(noise, 1, box, stage=1), heat)
    half = Explainer(explainer.model.to(torch.device("cpu"), "bf16")).heat(noise, 1, box, stage=1)
    assert heat.any() and np.corrcoef(half.ravel(), heat.ravel())[0, 1] > 0.9


def test_a_box_of_a_detector_is_explained_by_its_own_place(detect_run: Path, blocks: Path) -> None:
    explainer = Explainer(load_model(detect_run))
    file = sorted((blocks / "val2017").glob("*.png"))[0]
    image = Image.open(file).convert("RGB")
    found = explainer.find(image)
    assert found and all(one.box is not None and 0 < one.score <= 1 for one in found)
    first = found[0]
    assert first.box is not None
    left, top, right, bottom = map(round, first.box)
    heat = explainer.heat(image, first.index, first.box, stage=1)
    assert heat[top:bottom, left:right].mean() > heat.mean()
    assert explainer.find(image, 1, first.box)[0] == first
    (
        np.testing.assert_array_equal(explainer.heat(image, first.index, stage=1), heat),
        "the surest of its class",
    )


def test_a_segment_and_a_region_of_it(noise: Image.Image) -> None:
    explainer = Explainer(dense("upernet", 20))
    found = explainer.find(noise, 20)
    painted = [one for one in found if any(explainer.model.metadata[one.index])]
    assert found[: len(painted)] == painted, "the background is the last"
    assert [one.score for one in painted] == sorted((one.score for one in painted), reverse=True)
    whole = explainer.heat(noise, found[0].index)
    left = explainer.heat(noise, found[0].index, (0, 0, 30, 96))
    assert not np.array_equal(whole, left)
    assert sum(one.score for one in explainer.find(noise, 20, (0, 0, 30, 96))) == pytest.approx(1)
    absent = ({*range(20)} - {one.index for one in explainer.find(noise, 20)}).pop()
    with pytest.raises(ConfigError, match=f"class '{absent}': the network gives it no pixel of the image"):
        explainer.heat(noise, absent)
    with pytest.raises(ConfigError, match="no pixel of the box"):
        explainer.heat(noise, 0, (500, 500, 600, 600))


def test_what_cannot_be_explained_is_one_line(
    classifier: Explainer, noise: Image.Image, detect_run: Path
) -> None:
    with pytest.raises(ConfigError, match="class 3: poolformer_n has classes 0 … 2"):
        classifier.heat(noise, 3)
    with pytest.raises(ConfigError, match="stage 4: the network has stages 0 … 3"):
        classifier.heat(noise, 0, stage=4)
    for call in (lambda box: classifier.heat(noise, 0, box), lambda box: classifier.find(noise, 1, box)):
        with pytest.raises(ConfigError, match="box: no option of image classification"):
            call((0.0, 0.0, 9.0, 9.0))
    model = load_model(detect_run)
    assert isinstance(model.model, Detector)
    model.model.config = replace(model.model.config, score_threshold=1.0)
    with pytest.raises(ConfigError, match="class 'green': no such object in the image"):
        Explainer(model).heat(noise, 0)
    with pytest.raises(ConfigError, match="class 'blue': no such object overlaps the box"):
        Explainer(model).heat(noise, 1, (900.0, 900.0, 950.0, 950.0))


# --- files


@pytest.mark.parametrize("task", TASKS)
def test_sheets_lines_and_the_page_of_every_task(
    task: str, untrained: dict[str, Path], detect_run: Path, blocks: Path, demo: Path, tmp_path: Path
) -> None:
    detects = task == "detect"
    source, root = (detect_run, blocks) if detects else (untrained[task], demo / task)
    images = sorted(
        file for file in root.rglob("*") if file.suffix in (".jpg", ".png") and "annot" not in str(file)
    )
    done = explain(source, images[:2], tmp_path / "out", device="cpu")
    assert len(done.images) == 2 and not done.skipped
    lines = [json.loads(line) for line in (tmp_path / "out" / "explained.jsonl").read_text().splitlines()]
    page = done.page.read_text()
    for line, one, image in zip(lines, done.images, images, strict=False):
        assert line == json.loads(json.dumps(one.to_dict())) and line["path"] == str(image)
        assert 1 <= len(line["subjects"]) <= 3
        assert {"index", "label", "score", "box"} == set(line["subjects"][0])
        assert (line["subjects"][0]["box"] is not None) == detects
        titles = [title for title, _ in line["rows"]]
        assert len(titles) == 4 and titles[0] == "What it finds, and where"
        assert len(line["rows"][0][1]) == 1 + len(line["subjects"])
        with Image.open(line["sheet"]) as sheet:
            assert sheet.width > 800 and np.asarray(sheet).std() > 20
        assert f'src="sheets/{Path(line["sheet"]).name}"' in page
    assert str(done.page) in done.text()


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_every_mixer_has_its_pictures(mixer: str) -> None:
    torch.manual_seed(0)
    network = create_model("poolformer_n", num_classes=3, mixers=mixer, image_size=(64, 64), **TINY)
    explainer = Explainer(describe_network(network).with_preprocess(image_size=64))
    image = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8))
    rows = sheet_rows(explainer.model, image, explainer.find(image, 2))
    assert [len(row.tiles) for row in rows] == [3, 4, 4, 4] + [4] * (mixer == "attention")
    assert all(tile.image.width == tile.image.height for row in rows for tile in row.tiles)


def test_attention_stages_have_a_row(tmp_path: Path, noise: Image.Image) -> None:
    mixers = ("pooling", "pooling", "attention", "attention")
    model = create_model("poolformer_n", num_classes=3, mixers=mixers, **TINY)
    save_pretrained(model, tmp_path / "model")
    done = explain(tmp_path / "model", noise, tmp_path / "out", count=1, device="cpu")
    assert done.images[0].rows[-1] == ("What all positions attend to", ("stage 2: 14×14", "stage 3: 7×7"))
    assert done.images[0].path == "" and Path(done.images[0].sheet).name == "image.jpg"


def test_chosen_classes_and_an_image_that_cannot_be_read(
    untrained: dict[str, Path], detect_run: Path, tmp_path: Path, noise: Image.Image
) -> None:
    (tmp_path / "in").mkdir()
    noise.save(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    source, place = untrained["classify"], tmp_path / "out"
    with pytest.raises(BadImage, match=r"a\.png: "):
        explain(source, tmp_path / "in", place, device="cpu")
    done = explain(source, tmp_path / "in", place, classes=["7", "3"], on_bad_image="skip", device="cpu")
    assert [one.label for one in done.images[0].subjects] == ["7", "3"]
    assert [error.path.name for error in done.skipped] == ["a.png"]
    with pytest.raises(UnknownName, match="unknown class 'seven'"):
        explain(source, noise, place, classes=["seven"], device="cpu")
    with pytest.raises(ConfigError, match="count is 0"):
        explain(source, noise, place, count=0, device="cpu")
    with pytest.raises(ConfigError, match="box is"):
        explain(untrained["segment"], noise, place, box=[9, 9, 3, 20], device="cpu")
    with pytest.raises(ConfigError, match="box is"):
        explain(untrained["segment"], noise, place, box=(-inf, -inf, inf, inf), device="cpu")
    with pytest.raises(ConfigError, match="stage 9"):
        explain(source, noise, place, stage=9, device="cpu")


def test_what_is_not_in_an_image_is_said_and_the_others_go_on(
    untrained: dict[str, Path], detect_run: Path, tmp_path: Path, noise: Image.Image, caplog: Any
) -> None:
    for dense_source in (untrained["segment"], detect_run):
        done = explain(dense_source, noise, tmp_path / "box", box=[900, 900, 950, 950], device="cpu")
        assert [(one.missing, one.subjects) for one in done.images] == [(("anything in the box",), ())]
        assert caplog.messages == ["the image: the network does not find anything in the box"]
        caplog.clear()
    images = [Image.new("RGB", (64, 64)), noise]
    done = explain(untrained["segment"], images, tmp_path / "out", classes=list("0123456789"), device="cpu")
    for one, message in zip(done.images, caplog.messages, strict=True):
        assert one.missing and len(one.missing) + len(one.subjects) == 10
        assert message == f"the image: the network does not find {', '.join(one.missing)}"
        assert f"not found: {one.missing[0].replace(chr(39), '&#39;')}" in done.page.read_text()


def test_sheets_of_an_earlier_call_are_replaced(
    untrained: dict[str, Path], noise: Image.Image, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("a", "b"):
        noise.save(tmp_path / f"{name}.png")
    explain(untrained["classify"], [tmp_path / "a.png", tmp_path / "b.png"], out, device="cpu")
    (out / "sheets" / "own.jpg").write_bytes(b"")
    explain(untrained["classify"], tmp_path / "b.png", out, device="cpu")
    assert sorted(file.name for file in (out / "sheets").iterdir()) == ["b.jpg", "own.jpg"]
    (out / "explained.jsonl").write_text('{"path": "b.png"}\n')
    with pytest.raises(OutputError, match=r"explained\.jsonl: is not of metaformer explain"):
        explain(untrained["classify"], tmp_path / "b.png", out, device="cpu")


# --- receptive field


def test_the_field_before_and_after_training(untrained: dict[str, Path], demo: Path, tmp_path: Path) -> None:
    done = measure_receptive_field(
        untrained["classify"], demo / "classify" / "val", tmp_path / "field.png", samples=2, device="cpu"
    )
    assert (done.trained_at, done.side, done.images, done.noise) == (64, 256, 2, False)
    before, after = done.fields.values()
    assert torch.equal(before.gradients, after.gradients), "never trained, and built from the run's seed"
    assert before.gradients.shape == (256, 256)
    assert "random weights" in done.text() and f"{before.squares()[0].side} (" in done.text()
    with Image.open(tmp_path / "field.png") as picture:
        assert picture.width > 400
    assert done.to_dict()["squares"]["trained weights"][3]["share"] == 0.99
    again = measure_receptive_field(untrained["segment"], side=128, samples=1, device="cpu")
    assert (again.side, again.noise) == (128, True) and "noise" in again.text()
    with pytest.raises(ConfigError, match="samples is 0"):
        measure_receptive_field(untrained["classify"], samples=0)


def test_networks_of_one_size_are_measured_at_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = create_model("poolformer_n", num_classes=3, mixers="spatial_fc", image_size=(64, 64), **TINY)
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    save_pretrained(model, tmp_path)
    done = measure_receptive_field(tmp_path, samples=1, device="cpu")
    assert (
        done.side == done.trained_at == 64
        and "takes no other size: its field may fill the frame" in caplog.text
    )
