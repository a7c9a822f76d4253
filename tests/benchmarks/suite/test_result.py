"""Results: JSON, shares of the ceilings, ratios and verdicts."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.suite.profile import Profile
from benchmarks.suite.result import Outcome, RowResult, judge
from benchmarks.suite.rows import Claim, Row
from metaformer.bench.timing import Timing

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
