"""Workers in processes of their own: in turn, asleep between requests, and never left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import metaformer
from metaformer.bench import int8_speed
from metaformer.bench.int8_speed import FORMS, Int8Speed, measure_int8, started
from metaformer.bench.timing import Machine, Timing
from metaformer.checkpoint.checkpoint import write_state
from metaformer.checkpoint.manifest import write_directory
from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError, MetaFormerError, WeightsError
from metaformer.inference.int8_model import NETWORK, load_openvino
from metaformer.weights.hub import save_pretrained

MIXER = """
from torch import nn
from metaformer.mixers import MIXERS

@MIXERS.register("still")
class Still(nn.Module):
    def __init__(self, dim):
        super().__init__()

    def forward(self, x):
        return x
"""
CRASH = """
import json, os, sys
order = json.loads(sys.stdin.readline())
print("{}", flush=True)
sys.stdin.readline()
if order["form"] == "bfloat16":
    print("a bad instruction", file=sys.stderr, flush=True)
    os.abort()
print(json.dumps({"seconds": 1}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier in `net`, one stage with the mixer that `still.py` registers."""
    folder = tmp_path_factory.mktemp("source")
    tiny: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (32, 32)}
    save_pretrained(metaformer.create_model("poolformer_s12", num_classes=3, **tiny), folder / "net")
    config = folder / "net" / "config.json"
    assert '"pooling"' in config.read_text()
    config.write_text(config.read_text().replace('"pooling"', '"still"', 1))  # neither of them has weights
    (folder / "still.py").write_text(MIXER)
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `quantize` writes it, though its graph is in float32."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(7200, 3))
    openvino: Any = load_openvino()
    graph = openvino.convert_model(torch.export.export(network.eval(), (torch.zeros(2, 3, 32, 32),)))
    graph.reshape([-1, 3, 32, 32])
    card = {"task": "classify", "name": "net", "int8": NETWORK, "classes": None}
    card["preprocess"] = Preprocess(32).to_dict()

    def fill(directory: Path) -> None:
        openvino.save_model(graph, directory / NETWORK, compress_to_fp16=False)
        write_state(directory, {"card": card, "config": None})

    return write_directory(tmp_path_factory.mktemp("quantized") / "int8", fill)


def order(folder: Path, **changes: Any) -> dict[str, Any]:
    """The first request to a worker."""
    values = {"source": folder / "net", "file": folder / "still.py", "form": "float32"}
    return {**values, "shape": (3, 32, 32), "threads": 1, **changes}


def test_rounds_of_each_form(source: Path, quantized: Path) -> None:
    speed = measure_int8(source / "net", quantized, (1, 2), rounds=2, file=source / "still.py")
    assert speed.machine.threads == 1
    for row in json.loads(json.dumps(speed.to_dict()))["seconds"].values():
        assert tuple(row) == FORMS and all(len(rounds) == 2 and min(rounds) > 0 for rounds in row.values())
    _, _, first, second = speed.text().splitlines()
    assert first.startswith("1 ") and second.startswith("2 ")


def test_text_has_the_fastest_round_and_the_median_ratio() -> None:
    seconds = {"float32": (0.04, 0.02, 0.03), "bfloat16": (0.012, 0.01, 0.2), "int8": (0.004, 0.005, 0.01)}
    row = tuple(Timing(seconds[form], 4) for form in FORMS)
    lines = Int8Speed(Machine("cpu: any", 2, "2", "3", "plain"), {4: row}).text().splitlines()
    assert lines[0].startswith("cpu: any, 2 threads")
    assert lines[1].split()[:4] == ["batch", *FORMS]
    assert lines[2].split(maxsplit=4)[:4] == ["4", "5.00", "2.50", "1.00"]
    assert lines[2].endswith("  4.00 × float32, 3.00 × bfloat16")


def test_rounds_that_disagree_give_no_ratio() -> None:
    """A figure of 27.98 × beside milliseconds whose ratio is 1.5."""
    float32, bfloat16, int8 = (0.003, 0.0839, 0.09), (0.003, 0.003, 0.004), (0.002, 0.003, 0.003)
    row = tuple(Timing(seconds, 1) for seconds in (float32, bfloat16, int8))
    line = Int8Speed(Machine("cpu: any", 2, "2", "3", "plain"), {1: row}).text().splitlines()[2]
    assert "no ratio to float32: rounds disagree, 1.50 to 30.00" in line and "27.9" not in line
    assert line.endswith(", 1.33 × bfloat16")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("policy", ["passive", "active"])
def test_a_waiting_worker_sleeps(source: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where OpenMP's threads were to spin forever."""
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with started("float32") as worker:
        worker.request(order(source, threads=2))
        assert worker.request({"batch": 4})["seconds"] > 0
        time.sleep(0.1)
        before = processor_time(worker.process.pid)
        time.sleep(0.5)
        assert processor_time(worker.process.pid) - before < 0.1


def processor_time(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("changes", "message"), [({"source": "nowhere"}, "nowhere"), ({"file": None}, "unknown mixer 'still'")]
)
def test_a_network_that_cannot_be_loaded(source: Path, changes: dict[str, Any], message: str) -> None:
    with (
        started("float32") as worker,
        pytest.raises(MetaFormerError, match=f"^speed of float32: .*{message}"),
    ):
        worker.request(order(source, **changes))


def test_what_is_not_int8(source: Path, tmp_path: Path) -> None:
    save_pretrained(metaformer.create_model("poolformer_n", num_classes=3), tmp_path / "plain")
    with pytest.raises(ConfigError, match="plain"):
        measure_int8(source / "net", tmp_path / "plain", (1,), rounds=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty"):
        measure_int8(source / "net", tmp_path / "empty", (1,), rounds=1)


def test_a_crash_ends_the_other_workers(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen.__init__

    def record(process: "subprocess.Popen[bytes]", *args: Any, **options: Any) -> None:
        processes.append(process)
        begin(process, *args, **options)

    monkeypatch.setattr(int8_speed, "WORKER", (sys.executable, "-c", CRASH))
    monkeypatch.setattr(subprocess.Popen, "__init__", record)
    with pytest.raises(MetaFormerError, match=r"^speed of bfloat16: .* signal 6; a bad instruction$"):
        measure_int8("any", quantized, (1,), rounds=1)
    workers = [process for process in processes if process.args == int8_speed.WORKER]
    assert len(workers) == 3 and all(process.poll() is not None for process in workers)


def test_a_worker_that_ended_before_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe is broken by then; the error is the last line that it printed."""
    monkeypatch.setattr(int8_speed, "WORKER", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    with started("int8") as worker:
        worker.process.wait()
        with pytest.raises(MetaFormerError, match=r"^speed of int8: .* status 1; no torch here$"):
            worker.request({"form": "int8"})


def test_an_unexpected_exception_is_reported_by_its_last_line(source: Path) -> None:
    with started("float32") as worker:
        worker.request(order(source))
        with pytest.raises(MetaFormerError, match=r"^speed of float32: .* status 1; .*Error: .*negative"):
            worker.request({"batch": -1})


def test_a_worker_ends_with_its_parent(source: Path) -> None:
    with started("float32") as worker:
        worker.request(order(source))
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert worker.process.wait(timeout=60) == 0
