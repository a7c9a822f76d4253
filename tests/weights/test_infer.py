"""Which published network a state is of."""

import pytest
import torch

from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import VARIANTS
from metaformer.weights.infer import candidates

TWINS = [
    {"poolformer_s12", "metaformer_id_s12"},
    *({f"identityformer_{size}", f"poolformerv2_{size}"} for size in ("s12", "s24", "s36", "m36", "m48")),
]
"""Networks that differ in a mixer without weights only."""


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognized(name: str) -> None:
    with torch.device("meta"):
        state = MetaFormer(VARIANTS[name]).state_dict()
    assert set(candidates(state)) == next((twins for twins in TWINS if name in twins), {name})


def test_other_states_are_none() -> None:
    assert candidates({}) == []
    assert candidates({"stages.0.blocks.0.mlp.fc1.weight": torch.ones(4, 2, 1, 1)}) == []
    assert candidates({"stages.x.blocks.y.mlp.fc1.weight": torch.ones(4)}) == []
