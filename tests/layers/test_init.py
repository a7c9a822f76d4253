"""First values of parameters by seed and name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metaformer.factory import create_detector, create_model, create_segmenter
from metaformer.layers.grid import FixedGrid
from metaformer.layers.init import init_part
from metaformer.mixers import MIXERS

MIXED = [name for name in MIXERS if not MIXERS.fixed_grid(name)]


def begun(
    build: Callable[..., nn.Module], *args: object, seed: int = 0, **options: object
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build(*args, **options).state_dict()


def shared_are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> int:
    shared = [name for name in one if name in other and "token_mixer" not in name]
    assert all(torch.equal(one[name], other[name]) for name in shared)
    return len(shared)


@pytest.mark.parametrize("mixer", [*MIXED, "spatial_fc", "random"])
@pytest.mark.parametrize("name", ["poolformer_n", "caformer_s18"])
def test_shared_parts_begin_alike_whatever_the_mixer(name: str, mixer: str) -> None:
    depths = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64), "num_classes": 5}
    own, other = (begun(create_model, name, mixers=one, **depths) for one in ("pooling", mixer))
    assert shared_are_equal(own, other) == len(own)
    assert any(not torch.equal(value, begun(create_model, name, seed=1, **depths)[key])
               for key, value in own.items() if "mlp" in key)  # fmt: skip


def test_heads_begin_alike_whatever_the_backbone() -> None:
    for build, kind in ((create_segmenter, "semantic_fpn"), (create_segmenter, "upernet"),
                        (create_detector, "retinanet"), (create_detector, "mask_rcnn")):  # fmt: skip
        small = {"head_dim": 16} if kind == "upernet" else {"fpn_dim": 16}
        one, other, deeper = (
            begun(build, kind, create_model(name, **shape).config, 3, **small)
            for name, shape in (
                ("poolformer_n", {}),
                ("poolformer_n", {"mixers": "attention"}),
                ("poolformer_n", {"depths": (2, 2, 4, 2)}),
            )
        )
        shared_are_equal(one, other)
        shared_are_equal(one, deeper)


def test_networks_in_turn_begin_otherwise_and_parts_of_one_too() -> None:
    torch.manual_seed(0)
    one, other = (create_model("poolformer_n", num_classes=3) for _ in range(2))
    assert not torch.equal(one.stem.conv.weight, other.stem.conv.weight)
    blocks = one.stages[2].blocks
    assert not torch.equal(blocks[0].mlp.fc1.weight, blocks[1].mlp.fc1.weight)
    one.reset_classifier(3)
    assert not torch.equal(one.head.fc.weight, other.head.fc.weight)


def test_a_part_leaves_the_stream_as_it_was() -> None:
    def following(draws: int) -> Tensor:
        torch.manual_seed(0)
        init_part("part", torch.randn, draws)
        return torch.randn(3)

    assert torch.equal(following(1), following(1000))


def test_the_distributions_are_those_of_the_layers() -> None:
    weight = begun(create_model, "poolformer_s12")["stages.3.blocks.1.mlp.fc1.weight"]
    assert abs(float(weight.std()) - 0.02) < 2e-4 and abs(float(weight.mean())) < 1e-4


def test_a_mixer_that_overrides_the_grids_forward_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Own(FixedGrid):
        def mix(self, tokens: Tensor) -> Tensor:
            return tokens

    assert not caplog.records

    class Hasty(FixedGrid):
        def mix(self, tokens: Tensor) -> Tensor:
            return tokens

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert "Hasty overrides FixedGrid.forward" in caplog.text
