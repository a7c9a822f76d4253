"""Results of the suite: rows, ceilings and the page."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.suite import ceilings
from benchmarks.suite.ceilings import Product, Replay, products
from benchmarks.suite.contender import Contender, build
from benchmarks.suite.dense import is_dense
from benchmarks.suite.page import page, plot
from benchmarks.suite.profile import Profile
from benchmarks.suite.result import Outcome, RowResult, Verdict, judge
from benchmarks.suite.rows import TABLE, Claim, Row, grid
from metaformer.backbones.variants import VARIANTS, family
from metaformer.bench.counts import count
from metaformer.bench.timing import Machine, Timing
from metaformer.errors import ConfigError

ROWS = (*TABLE, *grid("cpu"), *grid("cuda"))


def test_a_row_names_its_conditions_and_lists_contenders_once() -> None:
    claims = (Claim("a", ("ours eager",), ("timm eager",)), Claim("b", ("ours eager", "ours compiled"), ()))
    row = Row(model="poolformer_s12", device="cpu", batch=1, subject="grid", claims=claims)
    assert row.name == "cpu-poolformer_s12-inference-fp32-b1-grid"
    assert row.contenders == ("ours eager", "timm eager", "ours compiled")


def test_goals() -> None:
    assert Claim("a", (), (), 1.05).goal == "≥ 1.05 ×"
    assert Claim("a", (), (), 0.5, "memory").goal == "≤ 0.5 ×"
    assert Claim("a", (), ()).goal == "–"


def test_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_contender_exists(row: Row) -> None:
    assert row.model in VARIANTS or is_dense(row.model)
    sides = [Contender.read(name, row).side for claim in row.claims for name in claim.ours]
    assert set(sides) == {"ours"}
    assert all(Contender.read(name, row).dtype for name in row.contenders)


def test_both_devices_have_rows() -> None:
    assert {row.device for row in TABLE} == {"cpu", "cuda"}
    targets = [claim.target for row in TABLE for claim in row.claims if claim.target]
    assert len(targets) > 25 and min(targets) == 0.5


def test_every_family_under_every_condition() -> None:
    rows = grid("cpu")
    assert {family(row.model) for row in rows} == set(map(family, VARIANTS))
    conditions = {(row.mode, row.dtype, row.batch) for row in rows}
    assert len(conditions) == 12 and len(rows) == 12 * len({row.model for row in rows})
    assert all(Contender.read(name, row) for row in rows for name in row.contenders)
    assert not any("optimized" in name for row in rows if row.mode == "training" for name in row.contenders)


TWO = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False))


def test_work_is_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 8})
    monkeypatch.setattr(ceilings, "POSITIONS", {"cpu": (1, 2, 2)})
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 64})
    made = [kind(torch.device("cpu"), torch.float32) for kind in ceilings.CEILINGS.values()]
    assert [ceiling.work for ceiling in made] == [2 * 8**3, 2 * 4 * 512 * 2048, 2 * 64]
    for ceiling in made:
        ceiling(torch.empty(1))


def test_shapes_strides_and_groups() -> None:
    assert products(TWO, (2, 3, 16, 16)) == [
        Product((2, 3, 16, 16), (8, 3, 3, 3), True, (2, 2), (1, 1), 1),
        Product((2, 8, 8, 8), (8, 1, 7, 7), False, (1, 1), (3, 3), 8),
    ]
    assert next(TWO.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("side", "model"), [("ours", "poolformer_n"), ("ours", "caformer_s18")])
def test_all_products_of_a_model(side: str, model: str) -> None:
    network = build(side, model, 64)
    counts = count(network, (64, 64))
    found = sum(product.macs for product in products(network, (2, 3, 64, 64)))
    assert found == pytest.approx(2 * (counts.convolutions + counts.products), rel=0.01)


@pytest.mark.parametrize("fastest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_replayed(fastest: bool, dtype: torch.dtype) -> None:
    network = nn.Sequential(TWO, nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    replay = Replay(network, torch.zeros(2, 3, 16, 16, dtype=dtype), fastest)
    assert len(replay.runs) == 4
    with torch.inference_mode():
        shapes = [tuple(run(x).shape) for run, x in replay.runs]
        assert replay(torch.zeros(1)) is None
    assert [shape[0] for shape in shapes] == [2] * 4 and shapes[-1] == (2, 4)


class Hidden(nn.Module):
    """Reports multiply-adds in an operation that is no product."""

    def macs(self, height: int, width: int) -> int:
        return 10**9

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_hidden_products_are_refused() -> None:
    with pytest.raises(ConfigError, match="products"):
        products(nn.Sequential(TWO, Hidden()), (1, 3, 16, 16))


ROW = Row(model="poolformer_n", device="cpu", claims=())


def test_outcomes_survive_json() -> None:
    outcome = Outcome("ours eager", Timing((1.0, 2.0), 8), work=3.0, difference=0.1)
    assert Outcome.from_dict(json.loads(json.dumps(asdict(outcome)))) == outcome
    profiled = replace(outcome, profile=Profile(0.5, 0.5, None, 1.0))
    assert Outcome.from_dict(json.loads(json.dumps(asdict(profiled)))) == profiled
    old = {name: value for name, value in asdict(outcome).items() if name != "profile"}
    assert Outcome.from_dict(old) == outcome
    failed = Outcome("timm openvino", failure="openvino is not installed")
    assert Outcome.from_dict(json.loads(json.dumps(asdict(failed)))) == failed


def test_shares_of_the_ceilings() -> None:
    ours = Outcome("ours eager", Timing((2.0, 4.0), 8), work=100.0, traffic=50.0)
    ceilings = (
        Outcome("ceiling product fp32", Timing((1.0,), 1), work=100.0),
        Outcome("ceiling convolution fp32", Timing((1.0,), 1), work=200.0),
        Outcome("ceiling copy fp32", Timing((1.0,), 1), work=250.0),
    )
    result = RowResult(ROW, (ours, *ceilings))
    assert result.gemm_share(ours) == pytest.approx(0.25)
    assert result.copy_share(ours) == pytest.approx(0.1)
    assert RowResult(ROW, (ours,)).gemm_share(ours) is None, "no ceiling of this dtype"


def test_a_contender_that_was_not_measured() -> None:
    assert RowResult(ROW, (), failure="it broke")["ours eager"].failure == "it broke"


def result(*outcomes: Outcome) -> RowResult:
    return RowResult(ROW, outcomes)


def timed(name: str, *seconds: float, memory: int | None = None, pixels: int = 1) -> Outcome:
    return Outcome(name, Timing(seconds, 1), memory=memory, pixels=pixels)


def test_best_by_best() -> None:
    found = judge(
        Claim("best", ("a", "b"), ("c", "d"), 1.5),
        result(timed("a", 2, 2, 2), timed("b", 1, 3, 3), timed("c", 4, 3, 5), timed("d", 9, 9, 9)),
    )
    assert found.minima == 3 / 1 and (found.ours, found.theirs) == ("b", "c")
    assert found.pairs == (2.0, 1.5, 2.5) and found.median == 2.0, "a is better by median"
    assert found.quartiles == (1.75, 2.25)
    assert found.text == "reached"


@pytest.mark.parametrize(
    ("target", "text"), [(1.9, "reached"), (2.5, "by minima only"), (3.5, "missed"), (None, "no target")]
)
def test_verdicts(target: float | None, text: str) -> None:
    outcomes = result(timed("a", 1, 2, 2), timed("b", 3, 4, 4))
    found = judge(Claim("", ("a",), ("b",), target), outcomes)
    assert (found.minima, found.median, found.text) == (3.0, 2.0, text)
    slow = judge(Claim("", ("a",), ("b",), 2.0), result(timed("a", 2, 2, 2), timed("b", 3, 4, 4)))
    assert slow.text == "by median only"


def test_memory_is_that_of_our_fastest() -> None:
    outcomes = result(
        timed("fast", 1, 1, memory=60), timed("slow", 2, 2, memory=10), timed("theirs", 3, 3, memory=100)
    )
    claim = Claim("", ("fast", "slow"), ("theirs",), 0.5, "memory")
    found = judge(claim, outcomes)
    assert (found.minima, found.ours, found.text) == (0.6, "fast", "missed")
    assert judge(claim, result(timed("fast", 1), timed("theirs", 1))).text == "not compared"


def test_time_per_pixel() -> None:
    outcomes = result(timed("224", 1, 1, pixels=100), timed("448", 4.2, 4.4, pixels=400))
    found = judge(Claim("", ("448",), ("224",), 1.1, "pixels"), outcomes)
    assert found.minima == pytest.approx(1.05) and found.median == pytest.approx(1.075)
    assert found.text == "reached"


def test_missing_contenders_are_named() -> None:
    gone = Outcome("gone", failure="not installed")
    found = judge(Claim("", ("a",), ("b", "gone"), 2.0), result(timed("a", 1), timed("b", 3), gone))
    assert found.text == "reached, without gone"
    found = judge(Claim("", ("a",), ("gone",), 2.0), result(timed("a", 1), gone))
    assert (found.minima, found.median, found.text) == (None, None, "not compared")
    assert judge(Claim("", ("a",), ()), result(timed("a", 1))).text == "no target"


def test_plain_values() -> None:
    values = judge(Claim("", ("a",), ("b",), 2.0), result(timed("a", 1), timed("b", 3))).to_dict()
    assert values["median"] == 3.0 and values["verdict"] == "reached" and values["goal"] == "≥ 2 ×"


CLAIMS = (
    Claim("best by best", ("ours eager",), ("timm eager", "timm openvino"), 1.05),
    Claim("peak memory", ("ours eager",), ("timm eager",), 0.5, "memory"),
)
PAGE_ROW = Row(model="poolformer_n", device="cpu", mode="training", claims=CLAIMS)


def test_profiles() -> None:
    timing = Timing((0.010,), 8)
    result = RowResult(
        PAGE_ROW,
        (
            Outcome("ours eager", timing, work=1e9, profile=Profile(0.61, 0.29, 0.1, 1.04)),
            Outcome("ours compiled", timing, profile=Profile(0.7, 0.3, None, 0.98)),
            Outcome("timm eager", timing),
            Outcome("ceiling product fp32", Timing((0.02,), 1), work=4e9),
        ),
    )
    text = page([result], [], rounds=1)
    name = PAGE_ROW.name
    assert f"| {name} | ours eager | 61% | 29% | 10% | 50% | 1.04 |" in text
    compiled = f"| {name} | ours compiled | ≥ 70% | ≤ 30%, generated code and the rest | – | – | 0.98 |"
    assert compiled in text and f"| {name} | timm" not in text
    assert "Profiles of our best" not in page([RowResult(PAGE_ROW, result.outcomes[2:])], [], rounds=1)


def test_claims_and_contenders() -> None:
    result = RowResult(
        PAGE_ROW,
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
