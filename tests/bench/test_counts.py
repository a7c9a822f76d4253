"""Counted against arithmetic by hand; published sizes are in test_catalog.py."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import VARIANTS
from metaformer.bench.counts import count

TINY = MetaFormerConfig(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=10, image_size=(64, 64))


def build(config: MetaFormerConfig) -> MetaFormer:
    with torch.device("meta"):
        return MetaFormer(config)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("randformer")])
def test_frozen_parameters_are_counted_apart(name: str) -> None:
    counts = count(build(VARIANTS[name]))
    _, _, random, wide = VARIANTS[name].depths
    assert counts.params - counts.trainable == random * 196**2 + wide * 49**2


def test_a_convolution_by_hand() -> None:
    counts = count(nn.Conv2d(3, 8, 3, stride=2, padding=1), (16, 16))
    assert counts.macs == counts.convolutions == 8 * 8 * 8 * 3 * 9
    assert counts.activations == 8 * 8 * 8
    assert count(nn.Conv2d(8, 8, 7, padding=3, groups=8), (4, 4), in_chans=8).macs == 4 * 4 * 8 * 49


class Attend(nn.Module):
    """Attention of an image's rows to each other, two heads of width W."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(1, 2, -1, x.shape[3])
        return F.scaled_dot_product_attention(x, x, value=x)


def test_fused_attention_is_counted() -> None:
    counts = count(Attend(), (16, 8), in_chans=2)  # (1, 2 heads, 16 tokens, 8 wide)
    assert counts.attention == counts.macs == 2 * (16 * 16 * 8) * 2


def test_attention_grows_with_the_square_of_the_tokens() -> None:
    config = replace(TINY, mixers=("identity", "identity", "attention(head_dim=16)", "identity"))
    small, large = count(build(config), (64, 64)), count(build(config), (128, 128))
    assert small.attention == 2 * 16 * 16 * 16
    assert large.attention == 16 * small.attention


def test_cyclefc_costs_a_product() -> None:
    plain, cycle = (count(build(replace(TINY, mixers=name)), (64, 64)) for name in ("identity", "cycle_fc"))
    assert cycle.macs - plain.macs == 256 * 8 * 8 + 64 * 8 * 8 + 16 * 16 * 16 + 4 * 16 * 16


def test_pooling_and_norms_stand_apart() -> None:
    plain, pooled = (
        count(build(replace(TINY, mixers=name)), (64, 64)) for name in ("identity", "pooling(size=5)")
    )
    assert pooled.macs == plain.macs
    assert pooled.pooling - plain.pooling == 25 * (256 * 8 + 64 * 8 + 16 * 16 + 4 * 16)
    assert plain.norms == 2 * (256 * 8 + 64 * 8 + 16 * 16 + 4 * 16) + 4 * 16
    assert count(build(replace(TINY, norm="none")), (64, 64)).norms == 0


class Honest(nn.Module):
    """A mixer with `macs`, whose operations counters would count differently."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(dim, dim, 1)

    def macs(self, height: int, width: int) -> int:
        return 7 * height * width

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x)


class FusedHonest(Honest):
    """The same, called by the block with norm and scale."""

    def fused(self, x: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        return scale(self.wide(norm(x)))


@pytest.mark.parametrize("mixer", [Honest, FusedHonest])
def test_a_mixers_macs_replace_what_is_counted(mixer: type[nn.Module]) -> None:
    plain = count(build(replace(TINY, mixers="identity")), (64, 64))
    honest = count(build(replace(TINY, mixers=(mixer, "identity", "identity", mixer))), (64, 64))
    assert honest.macs - plain.macs == 7 * 256 + 7 * 4
    assert honest.by("mixer")[mixer.__name__]["products"] == 7 * 256 + 7 * 4
    assert honest.norms == plain.norms


@pytest.mark.parametrize("what", ["stage", "mixer", "block"])
def test_the_parts_add_up(what: Any) -> None:
    counts = count(build(VARIANTS["caformer_s18"]))
    rows = counts.by(what).values()
    assert sum(row.get("params", 0) for row in rows) == counts.params
    for kind in ("convolutions", "products", "attention", "pooling", "norms", "activations"):
        assert sum(row.get(kind, 0) for row in rows) == getattr(counts, kind)


def test_breakdown_names_stages_and_mixers() -> None:
    counts = count(build(VARIANTS["caformer_s18"]))
    assert list(counts.by("stage")) == ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]
    assert {"SepConv", "Attention", "mlp", "norm", "downsample"} <= set(counts.by("mixer"))
    assert counts.by("mixer")["Attention"]["attention"] == counts.attention


def test_the_model_is_unchanged() -> None:
    model = MetaFormer(TINY).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, (64, 64))
    assert model.training and not model._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
