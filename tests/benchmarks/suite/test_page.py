"""Results as Markdown and as an image."""

import sys
from pathlib import Path

import pytest

from benchmarks.suite.page import page, plot
from benchmarks.suite.profile import Profile
from benchmarks.suite.result import Outcome, RowResult, Verdict, judge
from benchmarks.suite.rows import Claim, Row
from metaformer.bench.timing import Machine, Timing

CLAIMS = (
    Claim("best by best", ("ours eager",), ("timm eager", "timm openvino"), 1.05),
    Claim("peak memory", ("ours eager",), ("timm eager",), 0.5, "memory"),
)
ROW = Row(model="poolformer_n", device="cpu", mode="training", claims=CLAIMS)


def test_profiles() -> None:
    timing = Timing((0.010,), 8)
    result = RowResult(
        ROW,
        (
            Outcome("ours eager", timing, work=1e9, profile=Profile(0.61, 0.29, 0.1, 1.04)),
            Outcome("ours compiled", timing, profile=Profile(0.7, 0.3, None, 0.98)),
            Outcome("timm eager", timing),
            Outcome("ceiling product fp32", Timing((0.02,), 1), work=4e9),
        ),
    )
    text = page([result], [], rounds=1)
    name = ROW.name
    assert f"| {name} | ours eager | 61% | 29% | 10% | 50% | 1.04 |" in text
    compiled = f"| {name} | ours compiled | ≥ 70% | ≤ 30%, generated code and the rest | – | – | 0.98 |"
    assert compiled in text and f"| {name} | timm" not in text
    assert "Profiles of our best" not in page([RowResult(ROW, result.outcomes[2:])], [], rounds=1)


def test_claims_and_contenders() -> None:
    result = RowResult(
        ROW,
        (
            Outcome("ours eager", Timing((0.010, 0.011), 8), memory=2**20, work=1e9),
            Outcome("timm eager", Timing((0.020, 0.022), 8), memory=2**22, work=1e9),
            Outcome("timm openvino", failure="openvino is not installed"),
            Outcome("ceiling product fp32", Timing((0.02,), 1), work=4e9),
        ),
        Machine("cpu: abacus", 2, "2.15", "3.13", "plain PyTorch: no CUDA device"),
    )
    broken = RowResult(Row(model="x", device="cpu", claims=()), (), failure="it was killed")
    text = page([result, broken], [judge(claim, result) for claim in CLAIMS], rounds=2)
    lines = text.splitlines()
    (best,) = (line for line in lines if "best by best" in line)
    assert best == (
        "| cpu-poolformer_n-training-fp32-b8 | best by best | ≥ 1.05 × | 2.000 | 2.000 [2.000, 2.000] | "
        "**ours eager 10.00** : **timm eager 20.00**, timm openvino – | reached, without timm openvino |"
    )
    (memory,) = (line for line in lines if "peak memory" in line)
    assert "0.250 | 0.250 | **ours eager 1 MiB** : **timm eager 4 MiB** | reached |" in memory
    assert any("openvino is not installed" in line for line in lines)
    assert any("ours eager | 10.00 | 10.50 | 761.9 | 50% |" in line for line in lines)
    assert any("200.0 GFLOP/s" in line for line in lines)
    assert (
        "cpu: abacus, 2 threads, PyTorch 2.15, Python 3.13, operations: plain PyTorch: no CUDA device" in text
        and "it was killed" in text
    )


VERDICTS = [
    Verdict("row", Claim("faster", (), (), 1.05), 1.2, (1.1, 1.2, 1.3)),
    Verdict("row", Claim("smaller", (), (), 0.5, "memory"), 0.7, (0.7,)),
    Verdict("row", Claim("no target", (), ()), 2.0, (2.0, 2.1)),
    Verdict("row", Claim("not measured", (), (), 1.0)),
]


def test_image(tmp_path: Path) -> None:
    file = tmp_path / "suite.png"
    assert str(file) in plot(VERDICTS, file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_without_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing was compared" in plot(VERDICTS[-1:], tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in plot(VERDICTS, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
