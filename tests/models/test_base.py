"""What every dense network asks of its backbone."""

from typing import Any

import pytest
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError
from metaformer.models.base import DenseNetwork

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
