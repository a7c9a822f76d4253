"""Ratios and what is said of them, from made-up times."""

import pytest

from benchmarks.suite.outcome import Outcome, RowResult
from benchmarks.suite.row import Claim, Row
from benchmarks.suite.verdict import judge
from metaformer.bench.timing import Timing

ROW = Row(model="poolformer_n", device="cpu", claims=())


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
    assert found.pairs == (2.0, 1.5, 2.5) and found.median == 2.0, "a is the better in the middle"
    assert found.quartiles == (1.75, 2.25)
    assert found.word == "reached"


@pytest.mark.parametrize(
    ("target", "word"), [(1.9, "reached"), (2.5, "by minima only"), (3.5, "missed"), (None, "told only")]
)
def test_words(target: float | None, word: str) -> None:
    outcomes = result(timed("a", 1, 2, 2), timed("b", 3, 4, 4))
    found = judge(Claim("", ("a",), ("b",), target), outcomes)
    assert (found.minima, found.median, found.word) == (3.0, 2.0, word)
    slow = judge(Claim("", ("a",), ("b",), 2.0), result(timed("a", 2, 2, 2), timed("b", 3, 4, 4)))
    assert slow.word == "by median only"


def test_memory_is_that_of_our_quickest() -> None:
    outcomes = result(
        timed("quick", 1, 1, memory=60), timed("slow", 2, 2, memory=10), timed("theirs", 3, 3, memory=100)
    )
    claim = Claim("", ("quick", "slow"), ("theirs",), 0.5, "memory")
    found = judge(claim, outcomes)
    assert (found.minima, found.ours, found.word) == (0.6, "quick", "missed")
    assert judge(claim, result(timed("quick", 1), timed("theirs", 1))).word == "not compared"


def test_time_per_pixel() -> None:
    outcomes = result(timed("224", 1, 1, pixels=100), timed("448", 4.2, 4.4, pixels=400))
    found = judge(Claim("", ("448",), ("224",), 1.1, "pixels"), outcomes)
    assert found.minima == pytest.approx(1.05) and found.median == pytest.approx(1.075)
    assert found.word == "reached"


def test_who_is_missing_is_told() -> None:
    gone = Outcome("gone", failure="not installed")
    found = judge(Claim("", ("a",), ("b", "gone"), 2.0), result(timed("a", 1), timed("b", 3), gone))
    assert found.word == "reached, without gone"
    found = judge(Claim("", ("a",), ("gone",), 2.0), result(timed("a", 1), gone))
    assert (found.minima, found.median, found.word) == (None, None, "not compared")
    assert judge(Claim("", ("a",), ()), result(timed("a", 1))).word == "told only"


def test_plain_values() -> None:
    values = judge(Claim("", ("a",), ("b",), 2.0), result(timed("a", 1), timed("b", 3))).to_dict()
    assert values["median"] == 3.0 and values["verdict"] == "reached" and values["goal"] == "≥ 2 ×"
