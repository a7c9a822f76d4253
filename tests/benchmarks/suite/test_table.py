"""Every row of the table, and of the grid, names contenders that exist."""

import pytest

from benchmarks.suite.contender import Contender
from benchmarks.suite.grid import grid
from benchmarks.suite.row import Row
from benchmarks.suite.table import TABLE
from metaformer.backbones.variants import VARIANTS

ROWS = (*TABLE, *grid("cpu"), *grid("cuda"))


def test_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_contender_is_understood(row: Row) -> None:
    assert row.model in VARIANTS
    sides = [Contender.read(name, row).side for claim in row.claims for name in claim.ours]
    assert set(sides) == {"ours"}
    assert all(Contender.read(name, row).dtype for name in row.contenders)


def test_both_devices_have_rows() -> None:
    assert {row.device for row in TABLE} == {"cpu", "cuda"}
    targets = [claim.target for row in TABLE for claim in row.claims if claim.target]
    assert len(targets) > 25 and min(targets) == 0.5
