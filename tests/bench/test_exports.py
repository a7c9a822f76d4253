"""Workers in processes of their own: in turn, asleep between requests, and never left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import metaformer
from metaformer.bench import exports
from metaformer.bench.exports import (
    BFLOAT16,
    OPTIMIZED,
    TORCH,
    Speed,
    bench_exports,
    measure_forms,
    started,
)
from metaformer.bench.timing import Machine, Timing
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.registry import import_files
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
def onnx(source: Path) -> Path:
    """The network as an exported file."""
    import_files([source / "still.py"])
    return metaformer.export(source / "net", source / "net.onnx").path


def order(folder: Path, **changes: Any) -> dict[str, Any]:
    """The first request to a worker."""
    values = {"source": folder / "net", "file": folder / "still.py", "form": OPTIMIZED, "exported": None}
    return {**values, "shape": (3, 32, 32), "threads": 1, **changes}


FORMS = (OPTIMIZED, BFLOAT16, "int8")


@pytest.mark.usefixtures("forked_workers")
def test_rounds_of_each_form(source: Path, onnx: Path) -> None:
    forms = {TORCH: None, OPTIMIZED: None, BFLOAT16: None, "file": onnx}
    speed = measure_forms(source / "net", forms, batches=(1, 2), rounds=2, file=source / "still.py")
    assert speed.machine.threads == 1
    for row in json.loads(json.dumps(speed.to_dict()))["seconds"].values():
        assert list(row) == list(forms)
        assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in row.values())
    _, _, first, second = speed.text().splitlines()
    assert first.startswith("1 ") and second.startswith("2 ")


def speed_of(batch: int, *seconds: tuple[float, ...]) -> Speed:
    """One row of times."""
    timings = {form: {batch: Timing(own, batch)} for form, own in zip(FORMS, seconds, strict=True)}
    return Speed(Machine("cpu: any", 2, "2", "3", "plain"), timings)


def test_text_has_the_fastest_round_and_the_median_ratio() -> None:
    speed = speed_of(4, (0.04, 0.02, 0.03), (0.012, 0.01, 0.2), (0.004, 0.005, 0.01))
    lines = speed.text().splitlines()
    assert lines[0].startswith("cpu: any, 2 threads")
    assert lines[1].split()[:4] == ["batch", *FORMS]
    assert lines[2].split(maxsplit=4)[:4] == ["4", "5.00", "2.50", "1.00"]
    assert lines[2].endswith("  4.00 × optimized, 3.00 × bfloat16")


def test_rounds_that_disagree_give_no_ratio() -> None:
    """A figure of 27.98 × beside milliseconds whose ratio is 1.5."""
    speed = speed_of(1, (0.003, 0.0839, 0.09), (0.003, 0.003, 0.004), (0.002, 0.003, 0.003))
    line = speed.text().splitlines()[2]
    assert "no ratio to optimized: rounds disagree, 1.50 to 30.00" in line and "27.9" not in line
    assert line.endswith(", 1.33 × bfloat16")


@pytest.mark.slow
def test_a_table_of_all_forms(untrained: dict[str, Path], tmp_path: Path) -> None:
    """Files that are given are not made again; those of another task are refused."""
    given = metaformer.export(untrained["classify"], tmp_path / "net.onnx").path
    steps: list[str] = []
    report = bench_exports(
        untrained["classify"], files=[given], images=4, rounds=1, size=64, on_step=steps.append
    )
    assert list(report.metrics) == [TORCH, OPTIMIZED, "ONNX", "OpenVINO", "int8"]
    assert report.metric == "top1" and report.bytes["ONNX"] == given.stat().st_size
    assert report.bytes[TORCH] == report.bytes[OPTIMIZED] < report.bytes["OpenVINO"]
    assert report.metrics[TORCH] == report.metrics["ONNX"] == report.metrics["OpenVINO"]
    assert "making the int8 form" in steps and "making the ONNX form" not in steps
    lines = report.text().splitlines()
    assert lines[0].split()[-1] == "top1" and [line.split()[0] for line in lines[1:6]] == list(report.metrics)
    assert set(json.loads(json.dumps(report.to_dict()))["seconds"]) == {"1", "8"}
    for source, files, named in (
        (untrained["segment"], [given], "net.onnx: for image classification"),
        (untrained["classify"], [tmp_path / "net.pt2"], "net.pt2: is no exported file"),
    ):
        with pytest.raises(ConfigError, match=named):
            bench_exports(source, files=files)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("policy", ["passive", "active"])
def test_a_waiting_worker_sleeps(source: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where OpenMP's threads were to spin forever."""
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with started(OPTIMIZED) as worker:
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


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    ("changes", "message"), [({"source": "nowhere"}, "nowhere"), ({"file": None}, "unknown mixer 'still'")]
)
def test_a_network_that_cannot_be_loaded(source: Path, changes: dict[str, Any], message: str) -> None:
    with (
        started(OPTIMIZED) as worker,
        pytest.raises(MetaFormerError, match=f"^speed of optimized: .*{message}"),
    ):
        worker.request(order(source, **changes))


def test_a_crash_ends_the_other_workers(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen.__init__

    def record(process: "subprocess.Popen[bytes]", *args: Any, **options: Any) -> None:
        processes.append(process)
        begin(process, *args, **options)

    monkeypatch.setattr(exports, "WORKER", (sys.executable, "-c", CRASH))
    monkeypatch.setattr(subprocess.Popen, "__init__", record)
    with pytest.raises(MetaFormerError, match=r"^speed of bfloat16: .* signal 6; a bad instruction$"):
        measure_forms("any", {OPTIMIZED: None, BFLOAT16: None, "int8": onnx}, batches=(1,), rounds=1)
    workers = [process for process in processes if process.args == exports.WORKER]
    assert len(workers) == 3 and all(process.poll() is not None for process in workers)


def test_a_worker_that_ended_before_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe is broken by then; the error is the last line that it printed."""
    monkeypatch.setattr(exports, "WORKER", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    with started("int8") as worker:
        worker.process.wait()
        with pytest.raises(MetaFormerError, match=r"^speed of int8: .* status 1; no torch here$"):
            worker.request({"form": "int8"})


@pytest.mark.usefixtures("forked_workers")
def test_an_unexpected_exception_is_reported_by_its_last_line(source: Path) -> None:
    with started(OPTIMIZED) as worker:
        worker.request(order(source))
        with pytest.raises(MetaFormerError, match=r"^speed of optimized: .* status 1; .*Error: .*negative"):
            worker.request({"batch": -1})


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_ends_with_its_parent(source: Path) -> None:
    with started(OPTIMIZED) as worker:
        worker.request(order(source))
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert worker.process.wait(timeout=60) == 0
