"""Rows as data."""

from benchmarks.suite.row import Claim, Row


def test_a_row_names_its_conditions_and_lists_contenders_once() -> None:
    claims = (Claim("a", ("ours eager",), ("timm eager",)), Claim("b", ("ours eager", "ours compiled"), ()))
    row = Row(model="poolformer_s12", device="cpu", batch=1, subject="grid", claims=claims)
    assert row.name == "cpu-poolformer_s12-inference-fp32-b1-grid"
    assert row.contenders == ("ours eager", "timm eager", "ours compiled")


def test_goals_are_readable() -> None:
    assert Claim("a", (), (), 1.05).goal == "≥ 1.05 ×"
    assert Claim("a", (), (), 0.5, "memory").goal == "≤ 0.5 ×"
    assert Claim("a", (), ()).goal == "–"
