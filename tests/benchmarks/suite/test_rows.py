"""Rows, the table and the grid: every contender exists."""

import pytest

from benchmarks.suite.contender import Contender
from benchmarks.suite.rows import TABLE, Claim, Row, grid
from metaformer.backbones.variants import VARIANTS

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
    assert row.model in VARIANTS
    sides = [Contender.read(name, row).side for claim in row.claims for name in claim.ours]
    assert set(sides) == {"ours"}
    assert all(Contender.read(name, row).dtype for name in row.contenders)


def test_both_devices_have_rows() -> None:
    assert {row.device for row in TABLE} == {"cpu", "cuda"}
    targets = [claim.target for row in TABLE for claim in row.claims if claim.target]
    assert len(targets) > 25 and min(targets) == 0.5


def test_every_family_under_every_condition() -> None:
    rows = grid("cpu")
    families = {name.partition("_")[0] for name in VARIANTS}
    assert {row.model.partition("_")[0] for row in rows} == families
    conditions = {(row.mode, row.dtype, row.batch) for row in rows}
    assert len(conditions) == 12 and len(rows) == 12 * len({row.model for row in rows})
    assert all(Contender.read(name, row) for row in rows for name in row.contenders)
    assert not any("optimized" in name for row in rows if row.mode == "training" for name in row.contenders)
