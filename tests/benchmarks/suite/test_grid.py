"""The wide grid is complete."""

from benchmarks.suite.contender import Contender
from benchmarks.suite.grid import grid
from metaformer.backbones.variants import VARIANTS


def test_every_family_under_every_condition() -> None:
    rows = grid("cpu")
    families = {name.partition("_")[0] for name in VARIANTS}
    assert {row.model.partition("_")[0] for row in rows} == families
    conditions = {(row.mode, row.dtype, row.batch) for row in rows}
    assert len(conditions) == 12 and len(rows) == 12 * len({row.model for row in rows})
    assert all(Contender.read(name, row) for row in rows for name in row.contenders)
    assert not any("optimized" in name for row in rows if row.mode == "training" for name in row.contenders)
