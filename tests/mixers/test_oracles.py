"""Mixers compute what timm's do, with the same weights."""

from collections.abc import Callable

import pytest
import torch
from timm.models.convnext import ConvNeXtBlock
from timm.models.inception_next import InceptionDWConv2d
from timm.models.mambaout import GatedConvBlock
from torch import Tensor, nn

from metaformer.mixers import MIXERS

DIM = 24
Oracle = Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor]]]
"""timm's module, and what it computes of (B, C, H, W)."""


def convnext() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    conv = ConvNeXtBlock(DIM).conv_dw
    return nn.ModuleDict({"conv": conv}), conv


def inception(*args: float) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    mixer = InceptionDWConv2d(DIM, *args)  # type: ignore[arg-type]
    return mixer, mixer


def mambaout(
    act: type[nn.Module] = nn.GELU, **options: float
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    block = GatedConvBlock(DIM, norm_layer=nn.Identity, act_layer=act, **options)
    return block, lambda x: block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) - x


ORACLES: dict[str, Oracle] = {
    "dwconv(kernel=7)": convnext,
    "inception_dwconv": inception,
    "inception_dwconv(kernel=5, band=9, ratio=0.25)": lambda: inception(5, 9, 0.25),
    "gated_dwconv": mambaout,
    "gated_dwconv(expansion=3.0, kernel=5, conv_ratio=1.5, act='silu')": lambda: mambaout(
        nn.SiLU, expansion_ratio=3.0, kernel_size=5, conv_ratio=1.5
    ),
}


@pytest.mark.parametrize("size", [(1, 1), (3, 14), (13, 7)])
@pytest.mark.parametrize("spec", ORACLES)
def test_values_and_gradients_are_timms(spec: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module, compute = ORACLES[spec]()
    module.double()
    ours, theirs = MIXERS.build(spec, DIM).double(), dict(module.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(theirs)
    with torch.no_grad():
        for name, value in ours.named_parameters():
            value.copy_(nn.init.normal_(theirs[name], std=0.3).view_as(value))
    x = torch.randn(2, DIM, *size, dtype=torch.float64, requires_grad=True)
    found, wanted = ours(x), compute(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-10)
    grads = torch.autograd.grad(found.pow(3).sum(), (x, *ours.parameters()))
    expected = torch.autograd.grad(wanted.pow(3).sum(), (x, *theirs.values()))
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other.view_as(one), rtol=1e-4, atol=1e-9)
