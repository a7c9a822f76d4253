"""What every family of networks promises; new families are covered unasked."""

from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import Tensor

from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import VARIANTS, family
from metaformer.factory import create_model

FAMILIES = list({family(name): name for name in reversed(VARIANTS)}.values())
every_family = pytest.mark.parametrize("name", FAMILIES)
SIZE = (64, 64)


def made(name: str, **options: Any) -> Any:
    """A small network of a family, whose scales are like trained ones."""
    torch.manual_seed(0)
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "image_size": SIZE, "num_classes": 5}
    network = create_model(name, **{**sizes, **options})
    for value in network.parameters():
        if value.ndim < 2 and value.requires_grad:
            torch.nn.init.uniform_(value, 0.2, 1.0)
    return network


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE)


@every_family
def test_exports(name: str) -> None:
    network: MetaFormer = made(name).eval()
    exported = torch.export.export(network, (images(),)).module()
    x = images()
    torch.testing.assert_close(exported(x), network(x), rtol=1e-4, atol=1e-5)


@every_family
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    network, x, found = made(name).double().train(), images().double(), []
    for enable in (False, True, "mlp"):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        network(x).square().sum().backward()
        found.append([value.grad.clone() for value in network.parameters() if value.requires_grad])
    for plain, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(other, plain)


@every_family
def test_layers_are_ordered_by_depth(name: str) -> None:
    network = made(name)
    depths = group_parameters(network, network.group_matcher(), reverse=True)
    assert depths.keys() == dict(network.named_parameters()).keys()
    names = [key for stage in (0, 2, 3) for key in depths if key.startswith(f"stages.{stage}.blocks.0.")]
    assert depths["stem.conv.weight"] < depths[names[0]] < depths[names[-1]]


@every_family
def test_pyramids_are_channels_last(name: str) -> None:
    network: MetaFormerFeatures = made(name, features_only=True, feature_norm="fresh").eval()
    with torch.no_grad():
        levels = network(images())
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 16, 16), (12, 8, 8), (16, 4, 4), (24, 2, 2)]
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in levels)


@pytest.mark.slow
@every_family
def test_traces_into_one_graph_with_its_backward(name: str) -> None:
    network, x = made(name).train(), images()
    torch.compiler.reset()
    y = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, network(x), rtol=1e-3, atol=1e-4)
    y.sum().backward()
