"""Where stages stand in the originals' lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.backbones.metaformer import MetaFormer
from metaformer.factory import model_config
from metaformer.weights.keymap import from_ours
from metaformer.weights.positions import Positions


@pytest.mark.parametrize("name", ["poolformer_s12", "metaformer_ppaa_s12", "cyclemlp_b1"])
def test_both_ways_agree(name: str) -> None:
    config = model_config(name, depths=(1,) * 4, dims=(32,) * 4, image_size=(64, 64))
    state = MetaFormer(config).state_dict()
    form = "cyclemlp" if name.startswith("cyclemlp") else "poolformer"
    ours, theirs = Positions.of_ours(state), Positions.of_foreign(from_ours(state, form))
    assert ours.blocks == theirs.blocks
    for stage in range(4):
        for kind in ("net", "down", "pos"):
            position = ours.position(kind, stage)
            if position is not None:
                assert theirs.stage(kind, position) == stage and theirs.fits(kind, position)


@given(st.integers(1, 6), st.integers(6, 9))
def test_outputs_beyond_a_pyramids_levels(levels: int, number: int) -> None:
    theirs = Positions.of_foreign(
        f"neck.lateral_convs.{i}.conv.{part}" for i in range(levels) for part in "wb"
    )
    ours = Positions.of_ours(f"neck.laterals.{i}.weight" for i in range(levels))
    assert theirs.levels == ours.levels == levels
    place = ours.position("extra", number)
    assert place is not None and place >= levels
    assert theirs.stage("extra", place) == number and theirs.fits("extra", place)
    assert not theirs.fits("extra", levels - 1)
