"""Results go to JSON and back, and know the ceilings."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.suite.outcome import Outcome, RowResult
from benchmarks.suite.profile import Profile
from benchmarks.suite.row import Row
from metaformer.bench.timing import Timing

ROW = Row(model="poolformer_n", device="cpu", claims=())


def test_there_and_back() -> None:
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
    assert RowResult(ROW, (ours,)).gemm_share(ours) is None, "another type's ceilings say nothing"


def test_what_was_never_reached_has_failed_with_its_row() -> None:
    assert RowResult(ROW, (), failure="it broke")["ours eager"].failure == "it broke"
