"""The Open Inference Protocol v2: outputs are those of the exported graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaformer import export
from metaformer.deploy.server.tensor import DATATYPES
from metaformer.inference.model import load_model
from metaformer.tasks import TASKS
from metaformer.tasks.exported import ExportOptions
from serving import Answer, Client, Running, running

Arrays = dict[str, Any]


def infer(client: Client, model: str, binary: bool = False, **inputs: Any) -> Answer:
    """A request with all inputs and outputs as JSON, or as binary data."""
    rows, data = [], b""
    for name, array in inputs.items():
        row = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
        if binary:
            row["parameters"] = {"binary_data_size": array.nbytes}
            data += array.tobytes()
        else:
            row["data"] = array.ravel().tolist()
        rows.append(row)
    text = json.dumps({"id": "7", "inputs": rows, "parameters": {"binary_data_output": binary}}).encode()
    headers = {"Inference_Header_Content_Length": str(len(text))} if binary else {}
    return client(f"/v2/models/{model}/infer", text + data, **headers)


def outputs(answer: Answer) -> Arrays:
    """Outputs by name, from JSON or binary data."""
    assert answer.status == 200, answer.body
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    fields, data, found = json.loads(answer.body[:size]), answer.body[size:], {}
    assert fields["id"] == "7"
    types = {kind: name for name, kind in DATATYPES.items()}
    for row in fields["outputs"]:
        dtype = np.dtype(types[row["datatype"]])
        if "data" in row:
            array = np.array(row["data"], dtype)
        else:
            length = row["parameters"]["binary_data_size"]
            array, data = np.frombuffer(data[:length], dtype), data[length:]
        found[row["name"]] = array.reshape(row["shape"])
    assert not data
    return found


def equal(found: Arrays, expected: Arrays) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].shape == expected[name].shape
        and np.allclose(found[name].astype(float), expected[name].astype(float), atol=2e-3)
        for name in expected
    )


@pytest.mark.parametrize("task", TASKS)
def test_outputs_are_those_of_the_exported_graph(
    task: str, server: Running, untrained: dict[str, Path]
) -> None:
    model = load_model(untrained[task]).to(torch.device("cpu"), "none")
    graph = model.spec.export.graph(model.model, model.preprocess, ExportOptions())
    images = np.random.RandomState(0).randint(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    inputs: Arrays = {"images": images}
    if TASKS[task].export.takes_sizes:
        inputs["sizes"] = np.array([[64, 96], [50, 70]], np.int64)
    with torch.inference_mode():
        values = graph(*(torch.from_numpy(array) for array in inputs.values()))
    expected = {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}
    binary, plain = (outputs(infer(server.client, task, how, **inputs)) for how in (True, False))
    assert equal(binary, expected)
    assert equal(plain, {name: array.astype(binary[name].dtype) for name, array in binary.items()})
    about = server.client(f"/v2/models/{task}").json()
    assert [row["name"] for row in about["outputs"]] == list(binary)
    for row in about["outputs"]:
        array = binary[row["name"]]
        assert row["datatype"] == DATATYPES[array.dtype.name]
        assert all(have in (-1, size) for have, size in zip(row["shape"], array.shape, strict=True))


def test_an_exported_file_is_served_as_its_network(
    server: Running, untrained: dict[str, Path], photos: list[Any], tmp_path: Path
) -> None:
    export(untrained["classify"], tmp_path / "file.onnx")
    images = np.random.RandomState(0).randint(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with running({"file": tmp_path / "file.onnx"}) as other:
        found = outputs(infer(other.client, "file", images=images))
        row = other.client("/models").json()["models"][0]
        scores = [
            client.image(f"/predict/{name}", photos[0]).json()["prediction"]["classes"][0]
            for client, name in ((other.client, "file"), (server.client, "classify"))
        ]
        refused = other.client.image("/explain/file?index=0", photos[0])
    assert row["task"] == "classify" and not row["explain"] and refused.status == 501
    assert equal(found, outputs(infer(server.client, "classify", images=images)))
    assert scores[0]["name"] == scores[1]["name"]
    assert scores[0]["score"] == pytest.approx(scores[1]["score"], abs=1e-4)


def test_some_outputs_and_how_they_come(server: Running) -> None:
    images = np.zeros((1, 64, 64, 3), np.uint8)
    fields = {
        "inputs": [{"name": "images", "shape": [1, 64, 64, 3], "datatype": "UINT8", "data": images.tolist()}],
        "outputs": [{"name": "count"}, {"name": "boxes", "parameters": {"binary_data": True}}],
    }
    answer = server.client("/v2/models/detect/infer", json.dumps(fields))
    size = int(answer.headers["inference-header-content-length"])
    count, boxes = sorted(json.loads(answer.body[:size])["outputs"], key=lambda row: -len(row["name"]))
    assert {count["name"], boxes["name"]} == {"count", "boxes"}
    assert len(answer.body) - size == 100 * 4 * 4


GOOD = {"name": "images", "shape": [1, 64, 64, 3], "datatype": "UINT8", "data": [0] * (64 * 64 * 3)}
BAD: dict[str, tuple[int, Any]] = {
    "no JSON": (400, b"{"),
    "a list": (400, []),
    "no inputs": (400, {}),
    "inputs of another type": (400, {"inputs": {"images": 1}}),
    "deep": (400, b"[" * 100_000),
    "another name": (400, {"inputs": [{**GOOD, "name": "x"}]}),
    "one more": (400, {"inputs": [GOOD, {**GOOD, "name": "x"}]}),
    "another type": (400, {"inputs": [{**GOOD, "datatype": "FP32"}]}),
    "an unknown type": (400, {"inputs": [{**GOOD, "datatype": "BYTES"}]}),
    "another shape": (400, {"inputs": [{**GOOD, "shape": [1, 3, 64, 64]}]}),
    "more images than a batch": (413, {"inputs": [{**GOOD, "shape": [9, 8, 8, 3], "data": [0] * 1728}]}),
    "no image": (400, {"inputs": [{**GOOD, "shape": [0, 64, 64, 3], "data": []}]}),
    "a huge shape": (400, {"inputs": [{**GOOD, "shape": [2**62, 64, 64, 3]}]}),
    "a shape below 0": (400, {"inputs": [{**GOOD, "shape": [-1, 64, 64, 3]}]}),
    "too few numbers": (400, {"inputs": [{**GOOD, "data": [0]}]}),
    "ragged numbers": (400, {"inputs": [{**GOOD, "data": [[0], [0, 1]]}]}),
    "numbers out of range": (400, {"inputs": [{**GOOD, "data": [256] * (64 * 64 * 3)}]}),
    "fractions": (400, {"inputs": [{**GOOD, "data": [0.5] * (64 * 64 * 3)}]}),
    "texts": (400, {"inputs": [{**GOOD, "data": ["0"] * (64 * 64 * 3)}]}),
    "an unknown output": (400, {"inputs": [GOOD], "outputs": [{"name": "x"}]}),
    "an id of another type": (400, {"id": 3, "inputs": [GOOD]}),
    "binary data that are not there": (
        400,
        {"inputs": [{**GOOD, "data": None, "parameters": {"binary_data_size": 64 * 64 * 3}}]},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str, server: Running) -> None:
    status, body = BAD[name]
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.client("/v2/models/classify/infer", text)
    assert answer.status == status and set(answer.json()) == {"error"}, answer


@pytest.mark.parametrize("size", ["x", "-1", "99999999", ""])
def test_a_size_of_the_json_that_cannot_be(size: str, server: Running) -> None:
    text = json.dumps({"inputs": [GOOD]})
    answer = server.client("/v2/models/classify/infer", text, Inference_Header_Content_Length=size)
    assert answer.status == 400 and "error" in answer.json()


def test_sizes_lie_in_the_batch(server: Running) -> None:
    images = np.zeros((1, 64, 64, 3), np.uint8)
    for sizes in ([[0, 1]], [[65, 64]], [[1, 1], [1, 1]]):
        answer = infer(server.client, "segment", images=images, sizes=np.array(sizes, np.int64))
        assert answer.status == 400 and "sizes" in answer.json()["error"]


def test_an_image_that_is_too_small_is_refused_by_the_network(server: Running) -> None:
    answer = infer(server.client, "classify", images=np.zeros((1, 1, 1, 3), np.uint8))
    assert answer.status in (200, 400) and answer.json()


def test_the_server_describes_itself(server: Running) -> None:
    about = server.client("/v2").json()
    assert about["name"] == "metaformer" and "binary_tensor_data" in about["extensions"]
    assert server.client("/v2/models/segment/ready").json()["ready"]
    assert server.client("/v2/models/segment").json()["inputs"][1]["name"] == "sizes"
    assert server.client("/v2/models/nothing").status == 404
