"""What all networks on a backbone share."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError
from metaformer.models.base import DenseNetwork
from metaformer.models.fpn import FeaturePyramid

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28))


class Channels:
    def channels(self) -> list[int]:
        return [5, 6]


class Reductions(Channels):
    def reduction(self) -> list[int]:
        return [8, 32]


@pytest.mark.parametrize(("info", "reductions"), [(Channels(), [4, 8]), (Reductions(), [8, 32])])
def test_module_as_backbone(info: Any, reductions: list[int]) -> None:
    module = nn.Identity()
    module.feature_info = info
    network = DenseNetwork(None, module)
    assert network.levels() == ([5, 6], reductions)
    assert network.min_size == 1 and network.no_weight_decay() == set()
    for method in (network.set_grad_checkpointing, network.group_matcher):
        with pytest.raises(ConfigError, match="Identity"):
            method()


def test_configuration_as_backbone() -> None:
    network = DenseNetwork(TINY, None)
    assert network.levels() == ([8, 16, 20, 28], [4, 8, 16, 32])
    assert network.min_size == 3
    assert network.group_matcher()["stem"] == r"^backbone\.stem"


def test_backbone_is_required_and_needs_feature_info() -> None:
    with pytest.raises(ConfigError, match="backbone: neither"):
        DenseNetwork(None, None)
    with pytest.raises(ConfigError, match=r"Conv2d .*feature_info\.channels"):
        DenseNetwork(None, nn.Conv2d(3, 4, 1)).levels()


SIZES = [(24, 33), (12, 17), (6, 9), (3, 5)]


def test_computes_what_torchvisions_does() -> None:
    from torchvision.ops import FeaturePyramidNetwork

    dims = (8, 16, 20, 28)
    ours, theirs = FeaturePyramid(dims, 12), FeaturePyramidNetwork(list(dims), 12)
    for mine, other in (
        *zip(ours.laterals, theirs.inner_blocks, strict=True),
        *zip(ours.outputs, theirs.layer_blocks, strict=True),
    ):
        other[0].load_state_dict(mine.state_dict())
    maps = [torch.randn(2, dim, *size) for dim, size in zip(dims, SIZES, strict=True)]
    expected = theirs(OrderedDict((str(i), level) for i, level in enumerate(maps))).values()
    for level, other in zip(ours(maps), expected, strict=True):
        assert torch.allclose(level, other, atol=1e-6)


def test_starts_as_published() -> None:
    neck = FeaturePyramid((8, 16), 12)
    for conv in (*neck.laterals, *neck.outputs):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None and not conv.bias.any()
        fan_in, fan_out = conv.weight[0].numel(), conv.weight[:, 0].numel()
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < float(conv.weight.detach().abs().max()) <= bound
