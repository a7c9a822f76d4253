"""Measurement of a row in this process."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.suite import ceilings
from benchmarks.suite.contender import FORMS, Form
from benchmarks.suite.measuring import measure_row, one_line
from benchmarks.suite.rows import Claim, Row
from metaformer.errors import ConfigError

CLAIM = Claim("any", ("ours eager", "ours broken"), ("ours channels_last bf16", "timm eager"), 1.0)
ROW = Row(model="poolformer_n", device="cpu", batch=2, size=32, claims=(CLAIM,))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ceilings, and a form that fails."""

    def broken(form: Form) -> Form:
        raise RuntimeError("the compiler\n  said so")

    monkeypatch.setitem(FORMS, "broken", broken)
    monkeypatch.setitem(ceilings.SIDE, "cpu", 64)
    monkeypatch.setitem(ceilings.POSITIONS, "cpu", (1, 4, 4))
    monkeypatch.setitem(ceilings.COPIED, "cpu", 1 << 16)


def test_a_failing_contender_is_left_out() -> None:
    events: list[Mapping[str, Any]] = []
    result = measure_row(ROW, 2, report=events.append)
    ours, broken, other = (result[name] for name in (*CLAIM.ours, CLAIM.theirs[0]))
    assert ours.timing is not None and len(ours.timing.seconds) == 2 and ours.prepared
    assert broken.timing is None and broken.failure == "RuntimeError: the compiler said so"
    assert other.timing is not None and other.dtype == "bf16"
    assert ours.traffic is not None and other.traffic == ours.traffic / 2 and other.work == ours.work
    assert "timm has no poolformer_n" in result["timm eager"].failure
    assert {"failed": "ours broken", "reason": broken.failure} in events
    assert events[-1] == {"round": 2, "of": 2}
    assert result.gemm_share(ours) and result.gemm_share(other) and result.copy_share(ours)
    assert ours.profile is not None and ours.profile.rest is not None and other.profile is None
    assert result.machine is not None and result.machine.device.startswith("cpu")


def test_contenders_are_left_out_on_request() -> None:
    result = measure_row(ROW, 1, skip={"ours eager": "it crashed"}, ceilings=False)
    assert result["ours eager"].failure == "it crashed"
    assert {outcome.name for outcome in result.outcomes} == set(ROW.contenders)


def test_the_fastest_of_each_claim_is_profiled() -> None:
    claims = (Claim("a", ("ours eager", "ours eager 224"), ()), Claim("b", ("ours eager 224",), ()))
    result = measure_row(replace(ROW, claims=claims), 2, ceilings=False)
    assert all(outcome.profile is not None for outcome in result.outcomes)
    result = measure_row(replace(ROW, claims=claims[:1]), 2, ceilings=False)
    assert [outcome.name for outcome in result.outcomes if outcome.profile] == ["ours eager"], "the small one"


def test_training_has_memory_and_three_times_the_work() -> None:
    claims = (Claim("any", ("ours eager",), ()),)
    inference, training = (
        measure_row(
            Row(model="poolformer_n", device="cpu", mode=mode, batch=2, size=32, claims=claims),  # type: ignore[arg-type]
            1,
            ceilings=False,
        )["ours eager"]
        for mode in ("inference", "training")
    )
    assert training.memory and inference.memory and training.memory > 2 * inference.memory
    assert training.profile and training.profile.products > 0
    assert training.work and inference.work and training.work == 3 * inference.work


def test_a_row_without_contenders() -> None:
    result = measure_row(ROW, 1, skip=dict.fromkeys(ROW.contenders, "no"), ceilings=False)
    assert all(outcome.failure == "no" for outcome in result.outcomes)


def test_errors_in_one_line() -> None:
    assert one_line(ConfigError("so\n  it is")) == "so it is"
    assert one_line(ValueError()) == "ValueError" and len(one_line(ValueError("x" * 999))) == 300
