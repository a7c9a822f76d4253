"""Contenders in processes of their own: in turn, at rest between, and never left behind."""

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


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny classifiers as `save_pretrained` writes them; `net` has a mixer of a user's file in one stage."""
    place = tmp_path_factory.mktemp("source")
    tiny: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (32, 32)}
    for name in ("net", "plain"):
        save_pretrained(metaformer.create_model("poolformer_s12", num_classes=3, **tiny), place / name)
    config = place / "net" / "config.json"
    assert '"pooling"' in config.read_text()
    config.write_text(config.read_text().replace('"pooling"', '"still"', 1))  # neither of them has weights
    (place / "still.py").write_text(MIXER)
    return place


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `quantize` writes it; what its products are stored in is not looked at."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(7200, 3))
    openvino: Any = load_openvino()
    graph = openvino.convert_model(torch.export.export(network.eval(), (torch.zeros(2, 3, 32, 32),)))
    graph.reshape([-1, 3, 32, 32])
    card = {
        "task": "classify",
        "name": "net",
        "int8": NETWORK,
        "classes": None,
        "preprocess": Preprocess(32).to_dict(),
    }

    def fill(directory: Path) -> None:
        openvino.save_model(graph, directory / NETWORK, compress_to_fp16=False)
        write_state(directory, {"card": card, "config": None})

    return write_directory(tmp_path_factory.mktemp("small") / "int8", fill)


def test_rounds_of_each(source: Path, small: Path) -> None:
    speed = measure_int8(source / "net", small, (1, 2), rounds=2, file=source / "still.py")
    assert speed.machine.threads == 1
    for row in json.loads(json.dumps(speed.to_dict()))["seconds"].values():
        assert tuple(row) == FORMS and all(len(rounds) == 2 and min(rounds) > 0 for rounds in row.values())
    _, _, first, second = speed.text().splitlines()
    assert first.startswith("1 ") and second.startswith("2 ")


def test_table() -> None:
    """The quickest round of each, by the image; the median of the rounds' ratios."""
    seconds = {"float32": (0.04, 0.02, 0.03), "bfloat16": (0.012, 0.01, 0.2), "int8": (0.004, 0.005, 0.01)}
    row = tuple(Timing(seconds[form], 4) for form in FORMS)
    machine = Machine("cpu: any", 2, "2", "3", "plain")
    lines = Int8Speed(machine, {4: row}).text().splitlines()
    assert lines[0].startswith("cpu: any, 2 threads")
    assert lines[1].split()[:4] == ["batch", *FORMS]
    assert lines[2].split(maxsplit=4)[:4] == ["4", "5.00", "2.50", "1.00"]
    assert lines[2].endswith("  4.00 × float32, 3.00 × bfloat16")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("policy", ["passive", "active"])
def test_who_waits_is_at_rest(source: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even threads that were to spin for ever do so between turns."""
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with started("float32") as contender:
        contender.ask({**order(source), "threads": 2})
        assert contender.ask({"batch": 4})["seconds"] > 0
        time.sleep(0.1)
        before = processor_time(contender.process.pid)
        time.sleep(0.5)
        assert processor_time(contender.process.pid) - before < 0.1


def test_what_cannot_be_opened_is_told(source: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(MetaFormerError, match=r"^speed of float32: .*nowhere: neither a run"):
        measure_int8(tmp_path / "nowhere", small, (1,), rounds=1)
    with pytest.raises(MetaFormerError, match=r"^speed of float32: .*unknown mixer 'still'"):
        measure_int8(source / "net", small, (1,), rounds=1)
    with pytest.raises(ConfigError, match="is not in int8"):
        measure_int8(source / "net", source / "plain", (1,), rounds=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty"):
        measure_int8(source / "net", tmp_path / "empty", (1,), rounds=1)


def test_a_mistake_in_the_program_is_told_by_its_last_line(source: Path) -> None:
    with started("float32") as contender:
        contender.ask(order(source))
        with pytest.raises(MetaFormerError, match=r"^speed of float32: .* status 1; .*Error: .*negative"):
            contender.ask({"batch": -1})


def test_who_crashes_ends_the_others(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen.__init__

    def noted(process: "subprocess.Popen[bytes]", *words: Any, **options: Any) -> None:
        processes.append(process)
        begin(process, *words, **options)

    monkeypatch.setattr(int8_speed, "CHILD", (sys.executable, "-c", CRASH))
    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    with pytest.raises(MetaFormerError, match=r"^speed of bfloat16: .* by signal 6; a bad instruction$"):
        measure_int8("any", small, (1,), rounds=1)
    ours = [process for process in processes if process.args == int8_speed.CHILD]
    assert len(ours) == 3 and all(process.poll() is not None for process in ours)


def test_one_that_ended_long_ago_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe is broken by the time that it is asked."""
    monkeypatch.setattr(int8_speed, "CHILD", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    with started("int8") as contender:
        contender.process.wait()
        with pytest.raises(MetaFormerError, match=r"^speed of int8: .* status 1; no torch here$"):
            contender.ask({"form": "int8"})


def test_it_leaves_with_its_parent(source: Path) -> None:
    with started("float32") as contender:
        contender.ask(order(source))
        assert contender.process.stdin is not None
        contender.process.stdin.close()
        assert contender.process.wait(timeout=60) == 0


def order(source: Path) -> dict[str, Any]:
    """What makes a contender ready."""
    values = {"source": source / "net", "file": source / "still.py", "form": "float32"}
    return {**values, "shape": (3, 32, 32), "threads": 1}


def processor_time(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
