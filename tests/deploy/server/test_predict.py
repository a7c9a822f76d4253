"""Predictions over HTTP are those of `Predictor`."""

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer import Predictor
from metaformer.data.rle import decode
from metaformer.deploy.optimize import optimize
from metaformer.deploy.server.network import EXPLAINED_PIXELS, check_input
from metaformer.errors import ConfigError
from metaformer.factory import create_model
from metaformer.inference.model import load_model
from metaformer.tasks import TASKS
from metaformer.weights.hub import save_pretrained
from serving import Client, Running, encoded, running
from toys import TINY

BOUNDARY = "b0undary"


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form of parts with a disposition each."""
    written = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    ]
    return b"".join(written) + f"--{BOUNDARY}--\r\n".encode()


def send_form(client: Client, path: str, body: bytes) -> Any:
    return client(path, body, content_type=f"multipart/form-data; boundary={BOUNDARY}")


@pytest.mark.parametrize("task", TASKS)
def test_a_prediction_is_the_predictors(
    task: str, server: Running, untrained: dict[str, Path], photos: list[Image.Image]
) -> None:
    options = dict(TASKS[task].served)
    predictor: Any = Predictor(untrained[task], device="cpu", rewrite=optimize, **options)
    for image in photos:
        answer = server.client.image(f"/predict/{task}", image)
        found = answer.json()
        assert answer.status == 200, found
        expected = predictor(image)[0].to_response()
        assert found["task"] == task and found["model"] == task
        assert found["image"] == {"width": image.width, "height": image.height}
        assert set(found["milliseconds"]) == {"decode", "queue", "network", "encode", "total"}
        assert close(found["prediction"], expected)


def close(found: Any, expected: Any) -> bool:
    """Equal, numbers but for the last bits: a batch may be computed in another order."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[k], expected[k]) for k in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        return bool(abs(found - expected) <= 1e-5 * max(1, abs(expected)))
    return bool(found == expected)


def test_detections_and_masks_of_a_trained_network(detect_run: Path, photos: list[Image.Image]) -> None:
    predictor: Any = Predictor(detect_run, device="cpu", rewrite=optimize)
    with running({"blocks": detect_run}) as server:
        (model,) = server.client("/models").json()["models"]
        found = [server.client.image("/predict", image).json()["prediction"] for image in photos]
    assert model["draw_score"] == predictor.predictor.draw_score
    assert sum(len(one["objects"]) for one in found) > 0
    for image, one in zip(photos, found, strict=True):
        result = predictor(image)[0]
        assert close(one, result.to_response())
        for number, row in enumerate(one["objects"]):
            assert (decode(row["mask"]) == result.mask(number)).all()
            assert row["color"] == model["colors"][row["index"]]


def test_a_label_map_is_a_png_of_classes(server: Running, untrained: dict[str, Path], photos: Any) -> None:
    predictor: Any = Predictor(untrained["segment"], device="cpu", rewrite=optimize)
    found = server.client.image("/predict/segment", photos[0]).json()["prediction"]
    kind, _, data = found["labels"].partition(",")
    label_map = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kind == "data:image/png;base64"
    assert (label_map == predictor(photos[0])[0].label_map).all()
    shares = [row["share"] for row in found["classes"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("task", TASKS)
def test_a_drawn_prediction_is_what_plot_draws(
    task: str, server: Running, untrained: dict[str, Path], photos: list[Image.Image]
) -> None:
    predictor: Any = Predictor(untrained[task], device="cpu", rewrite=optimize, **TASKS[task].served)
    answer = server.client.image(f"/predict/{task}", photos[0], accept="image/png")
    drawn = Image.open(io.BytesIO(answer.body))
    assert answer.headers["content-type"] == "image/png"
    expected = np.asarray(predictor(photos[0])[0].plot()).astype(int)
    assert np.abs(np.asarray(drawn) - expected).max() <= 1


def test_forms_and_bodies_are_the_same(server: Running, photos: list[Image.Image]) -> None:
    image = encoded(photos[0])
    body = form(('name="other"', b"x"), ('name="image"; filename="../../etc/passwd"', image))
    answers = [
        send_form(server.client, "/predict", body),
        server.client.image("/predict", image),
        server.client("/predict/classify", image, content_type="application/octet-stream"),
        server.client("/predict/classify", image, content_type="image/jpeg"),  # the content tells
    ]
    assert [answer.status for answer in answers] == [200] * 4
    first, *others = [answer.json()["prediction"] for answer in answers]
    assert all(close(other, first) for other in others)


def test_models_say_what_a_viewer_needs(server: Running) -> None:
    found = server.client("/models").json()
    assert (found["max_upload"], found["max_pixels"]) == (300_000, 1_000_000)
    assert [model["name"] for model in found["models"]] == list(TASKS)
    for model in found["models"]:
        assert model["task"] == model["name"] and model["ready"]
        assert model["title"] == TASKS[model["task"]].title
        assert len(model["classes"]) == len(model["colors"] or model["thresholds"] or model["classes"])
    by_task = {model["task"]: model for model in found["models"]}
    assert by_task["multilabel"]["thresholds"] == [0.5] * 10
    assert by_task["segment"]["colors"][1] == "#800000"
    assert by_task["detect"]["draw_score"] == 0


def test_an_image_is_turned_upright(server: Running, photos: list[Image.Image]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = server.client.image("/predict/segment", encoded(photos[0], "JPEG", exif=exif)).json()
    assert found["image"] == {"width": photos[0].height, "height": photos[0].width}


def test_classes_are_ten_at_most(server: Running, photos: list[Image.Image]) -> None:
    assert len(server.client.image("/predict/classify", photos[0]).json()["prediction"]["classes"]) == 10


def test_options_of_the_task(untrained: dict[str, Path], photos: list[Image.Image]) -> None:
    with running({"digits": untrained["classify"]}, {"top_k": 3, "flip": True}) as server:
        found = server.client.image("/predict/digits", photos[0]).json()["prediction"]
    expected: Any = Predictor(untrained["classify"], device="cpu", rewrite=optimize, top_k=3, flip=True)
    assert close(found, expected(photos[0])[0].to_response())


@pytest.mark.parametrize("task", TASKS)
def test_an_explanation_is_a_gray_image(task: str, server: Running, photos: list[Image.Image]) -> None:
    """Where the network does not see the class, or nothing here can explain, it says so."""
    known = {model["name"]: model["explain"] for model in server.client("/models").json()["models"]}
    answer = server.client.image(f"/explain/{task}?index=1", photos[0])
    assert answer.status == 200 or set(answer.json()) == {"error"}
    assert answer.status in ((200, 400) if known[task] else (501,))
    if answer.status == 200:
        heat = Image.open(io.BytesIO(answer.body))
        assert (heat.mode, heat.size) == ("L", photos[0].size)


@pytest.mark.parametrize("task", TASKS)
def test_images_of_odd_sizes_are_no_error_of_the_server(task: str, server: Running) -> None:
    for size in ((1, 1), (1, 400), (400, 1), (999, 3)):
        answer = server.client.image(f"/predict/{task}", Image.new("RGB", size, (9, 99, 200)))
        assert answer.status == 200 or (answer.status == 400 and answer.json()["error"]), answer


def test_a_strip_of_a_kilobyte_fills_no_memory(server: Running) -> None:
    for size, kind in (((1, 400_000), "application/json"), ((400_000, 1), "image/png")):
        strip = Image.new("RGB", size, (9, 99, 200))
        answer = server.client.image("/predict/multilabel", strip, accept=kind)
        assert answer.status == 200, answer


def test_a_strip_that_padding_makes_large_is_refused(server: Running) -> None:
    answer = server.client.image("/predict/segment", Image.new("RGB", (1, 1_000_000), (9, 99, 200)))
    assert answer.status == 400 and "25,000,000 pixels" in answer.json()["error"], answer


def test_a_network_that_was_replaced_is_not_explained_by_the_new_one(
    photos: list[Image.Image], tmp_path: Path
) -> None:
    pytest.importorskip("captum")

    def save() -> None:
        save_pretrained(create_model("poolformer_n", num_classes=3, **TINY), tmp_path / "net")

    save()
    with running({"net": tmp_path / "net"}) as server:
        before = server.client.image("/predict", photos[0]).json()["prediction"]
        save()
        answer = server.client.image("/explain/net?index=1", photos[0])
        assert answer.status == 503 and "have been replaced" in answer.json()["error"]
        shutil.rmtree(tmp_path / "net")
        answer = server.client.image("/explain/net?index=1", photos[0])
        assert answer.status == 503 and "cannot be read any more" in answer.json()["error"]
        assert server.client.image("/predict", photos[0]).json()["prediction"] == before
    save()
    with running({"net": tmp_path / "net"}) as server:
        assert server.client.image("/explain/net?index=1", photos[0]).status == 200
        save()
        assert server.client.image("/explain/net?index=2", photos[0]).status == 200, "it has been loaded"


def test_images_too_large_to_be_explained(untrained: dict[str, Path]) -> None:
    model = load_model(untrained["segment"])
    check_input(model, Image.new("L", (2000, 1984)), EXPLAINED_PIXELS)
    with pytest.raises(ConfigError, match="2016×2016, and 4,000,000 pixels"):
        check_input(model, Image.new("L", (2001, 2001)), EXPLAINED_PIXELS)
    check_input(load_model(untrained["classify"]), Image.new("L", (2001, 2001)), EXPLAINED_PIXELS)
