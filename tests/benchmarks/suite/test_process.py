"""A row in a process of its own: complete, crashing, and too slow."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import process
from benchmarks.suite.process import Order, row_of, run_row
from benchmarks.suite.rows import TABLE, Claim, Row

ROW = Row(
    model="poolformer_n",
    device="cpu",
    batch=1,
    size=32,
    claims=(Claim("any", ("ours eager",), ("ours channels_last",)),),
)
CRASH = """
import json, os, sys
order = json.loads(sys.stdin.readline())
for name in ("ours eager", "ours channels_last"):
    print(json.dumps({"preparing": name}), flush=True)
    if name not in order["skip"]:
        print("a bad instruction", file=sys.stderr, flush=True)
        os.abort()
values = {"timing": None, "failure": "none"}
outcomes = [{"name": name, **values, "failure": order["skip"][name]} for name in order["skip"]]
machine = {"device": "d", "threads": 1, "pytorch": "p", "python": "q", "operations": "o"}
print(json.dumps({"outcomes": outcomes, "machine": machine}))
"""


def order(caches: Path, limit: float = 100) -> Order:
    return Order(rounds=1, threads=1, limit=limit, caches=caches)


def test_a_whole_row(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    result = run_row(ROW, order(tmp_path), tmp_path / "log", events.append)
    assert all(result[name].timing is not None for name in ROW.contenders), result.failure
    assert result["ceiling product fp32"].timing is not None
    assert result["ours eager"].profile is not None
    assert result.machine is not None and result.machine.threads == 1
    assert events[-1] == {"round": 1, "of": 1}


def test_a_crashing_contender_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", CRASH))
    result = run_row(ROW, order(tmp_path), tmp_path / "log", lambda event: None)
    for name in ROW.contenders:
        assert "killed by signal 6" in result[name].failure and "a bad instruction" in result[name].failure


def test_a_process_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    result = run_row(ROW, order(tmp_path), tmp_path / "log", lambda event: None)
    assert "ended with status 1" in result.failure and "no torch here" in result.failure


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """Its standard input ends while it still measures."""
    values = {"row": asdict(ROW), "rounds": 10**6, "threads": 1, "skip": {}}
    child = subprocess.Popen(
        process.WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        print(json.dumps(values), file=child.stdin, flush=True)
        assert json.loads(child.stdout.readline()) == {"preparing": "ours eager"}
        child.stdin.close()
        assert child.wait(timeout=60) == 1


def test_a_row_over_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", "import time; time.sleep(100)"))
    result = run_row(ROW, order(tmp_path, limit=1), tmp_path / "log", lambda event: None)
    assert "longer than 1 s" in result.failure


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_rows_survive_json(row: Row) -> None:
    assert row_of(json.loads(json.dumps(asdict(row)))) == row
