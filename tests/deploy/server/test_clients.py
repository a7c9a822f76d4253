"""Programs of others against a server: `make test-clients`, which installs them where nothing else is."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from metaformer.inference.model import load_model
from metaformer.tasks import TASKS
from metaformer.tasks.exported import ExportOptions
from serving import Running

CLIENTS = "METAFORMER_CLIENTS"
"""Variable with the folder of their programs."""
CASES = 2000
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
TRITON = """
import sys
import numpy as np
import tritonclient.http as http

url, inputs, out = sys.argv[1:]
client = http.InferenceServerClient(url)
assert client.is_server_live() and client.is_server_ready()
for model, arrays in np.load(inputs, allow_pickle=True)["arrays"].item().items():
    assert client.is_model_ready(model)
    about = client.get_model_metadata(model)
    types = {row["name"]: row["datatype"] for row in about["inputs"]}
    for binary in (True, False):
        given = []
        for name, array in arrays.items():
            given.append(http.InferInput(name, list(array.shape), types[name]))
            given[-1].set_data_from_numpy(array, binary_data=binary)
        asked = [http.InferRequestedOutput(row["name"], binary_data=binary) for row in about["outputs"]]
        for outputs in (None, asked):
            result = client.infer(model, given, outputs=outputs, request_id="7")
            assert result.get_response()["id"] == "7"
            found = {row["name"]: result.as_numpy(row["name"]) for row in about["outputs"]}
            np.savez(f"{out}/{model}-{binary}-{outputs is None}.npz", **found)
try:
    client.infer("classify", [])
except http.InferenceServerException as error:
    assert "inputs" in str(error), error
else:
    raise AssertionError("no error")
"""


@pytest.fixture
def programs() -> Path:
    """Folder of the clients' programs."""
    return Path(os.environ[CLIENTS])


@pytest.fixture
def environment() -> dict[str, str]:
    """Without this environment's packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.clients
@pytest.mark.timeout(1800)
def test_schemathesis_finds_no_error(
    server: Running, programs: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{server.client.port}/openapi.json"
    command = [programs / "schemathesis", "run", url, "--checks", ",".join(CHECKS), "--seed", "1"]
    command += ["--max-examples", "150", "--phases", "coverage,fuzzing", "--continue-on-failure"]
    if not server.client("/models").json()["models"][0]["explain"]:
        command += ["--exclude-path-regex", "^/explain"]  # 501 is what it must be then
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None and int(found[1]) >= CASES and found[1] == found[2], done.stdout
    print(found[0])
    assert server.client("/v2/health/ready").status == 200


@pytest.mark.clients
def test_tritonclient_gets_equal_numbers(
    server: Running,
    programs: Path,
    environment: dict[str, str],
    untrained: dict[str, Path],
    tmp_path: Path,
) -> None:
    images = np.random.RandomState(0).randint(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    sizes = np.array([[64, 96], [50, 70], [40, 96]], np.int64)
    inputs = {
        task: {"images": images, **({"sizes": sizes} if spec.export.takes_sizes else {})}
        for task, spec in TASKS.items()
    }
    np.savez(tmp_path / "inputs.npz", arrays=np.array(inputs, dtype=object))
    command = [programs / "python", "-c", TRITON, f"127.0.0.1:{server.client.port}"]
    command += [tmp_path / "inputs.npz", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for task, source in untrained.items():
        model = load_model(source).to(torch.device("cpu"), "none")
        graph = model.spec.export.graph(model.model, model.preprocess, ExportOptions())
        with torch.inference_mode():
            values = graph(*(torch.from_numpy(array) for array in inputs[task].values()))
        for kind in ("True-True", "True-False", "False-True", "False-False"):
            with np.load(tmp_path / f"{task}-{kind}.npz") as found:
                assert set(found) == set(graph.outputs)
                for name, value in zip(graph.outputs, values, strict=True):
                    assert found[name].dtype == value.numpy().dtype
                    assert np.allclose(found[name], value.numpy(), atol=1e-3, rtol=1e-4), (task, kind, name)
