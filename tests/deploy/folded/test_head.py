"""Heads by kernels compute what heads do; those with parts that they do not know run as they are."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.config import HEADS, MetaFormerConfig
from metaformer.backbones.head import Head
from metaformer.deploy.folded.head import FoldedHead
from metaformer.deploy.folded.replay import capture
from metaformer.layers.norm import NORMS
from ops.numerics import needs_linear


def heads(**options: Any) -> tuple[Head, FoldedHead]:
    """A head with constants like trained ones, and its folded form."""
    torch.manual_seed(0)
    config = MetaFormerConfig(dims=(8, 16, 24, 32), **options)
    head = Head(config).eval().requires_grad_(False)
    for value in head.parameters():
        if value.ndim < 2:
            nn.init.uniform_(value, 0.2, 1.0)
    return head, FoldedHead(copy.deepcopy(head))


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(3, 32, 5, 4).to(dtype) + 1
    return x.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("num_classes", [0, 1, 7, 16, 100])
def test_every_head(kind: str, norm: str, num_classes: int, dtype: torch.dtype, tolerance: float) -> None:
    head, folded = heads(head=kind, norm=norm, num_classes=num_classes)
    x = features(dtype)
    for pre_logits in (False, True):
        expected = head(x.float(), pre_logits=pre_logits)
        found = folded.to(dtype)(x, pre_logits=pre_logits)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    for global_pool in ("", "max"):
        for each in (head, folded):
            each.reset(32, 0, global_pool)
        torch.testing.assert_close(folded(x).float(), head(x.float()), rtol=tolerance, atol=tolerance)


@needs_linear
@torch.inference_mode()
@pytest.mark.parametrize("kind", HEADS)
def test_kernels_alone_compute_it(kind: str) -> None:
    head, folded = heads(head=kind, norm="layer_norm")
    x = features()
    folded(x)  # packs the weights
    assert capture(folded, x) is not None
    assert folded.state_dict().keys() == head.state_dict().keys()


@torch.inference_mode()
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm", "none"])
@pytest.mark.parametrize("kind", HEADS)
def test_without_its_norm(kind: str, norm: str) -> None:
    head, folded = heads(head=kind, norm=norm)
    head.norm = folded.norm = nn.Identity()
    x = features()
    torch.testing.assert_close(folded(x), head(x), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_unknown_parts_and_hooks_are_called() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    head, folded = heads()
    x, shapes = features(), []
    head.fc = folded.fc = Twice(32, 4)
    torch.testing.assert_close(folded(x), head(x))
    folded.norm.register_forward_hook(lambda module, args, result: shapes.append(result.shape))
    folded(x)
    assert shapes == [x.shape]


def test_gradients_of_a_new_classifier() -> None:
    _, folded = heads(num_classes=3)
    folded.reset(32, 5, "avg")
    folded(features()).sum().backward()
    assert folded.fc.weight.grad is not None
