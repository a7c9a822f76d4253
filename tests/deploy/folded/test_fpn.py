"""Semantic FPN with composed convolutions: the same function, only where it applies."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import metaformer
from metaformer.backbones.config import MetaFormerConfig
from metaformer.deploy.folded import fpn
from metaformer.deploy.folded.fpn import FoldedSemanticFPN, fold_semantic_fpn
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = SegmenterConfig(backbone=TINY, num_classes=7, fpn_dim=32, head_dim=6)


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpn, "MIN_POSITIONS", 0)


def trained(config: SegmenterConfig = CONFIG) -> Segmenter:
    torch.manual_seed(0)
    model = Segmenter(config).double().eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * (1.0 if "running_var" in name else 0.3))
    return model


def folded(model: Segmenter) -> FoldedSemanticFPN:
    model = copy.deepcopy(model)
    fold_semantic_fpn(model)
    assert isinstance(model.head, FoldedSemanticFPN) and model.neck is None
    return model.head


def features(model: Segmenter, *shape: int) -> list[Tensor]:
    with torch.no_grad():
        return model.backbone(torch.randn(*shape, dtype=next(model.parameters()).dtype))


def layer_by_layer(model: Segmenter, levels: list[Tensor]) -> Tensor:
    assert model.neck is not None
    return model.head(model.neck(levels))


def composes(head: FoldedSemanticFPN, levels: list[Tensor]) -> bool:
    """Whether the composed form runs."""
    head._clear()
    head(levels)
    return "levels" in head._cache


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 128), (32, 64)])
@pytest.mark.parametrize("fpn_dim", [32, 24, 8])  # of the finest levels two, one and none are composed
@torch.no_grad()
def test_the_same_function(size: tuple[int, int], fpn_dim: int) -> None:
    model = trained(replace(CONFIG, fpn_dim=fpn_dim))
    head, levels = folded(model), features(model, 2, 3, *size)
    expected = layer_by_layer(model, levels)
    assert composes(head, levels)
    assert (head(levels) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert torch.equal(head([level.contiguous() for level in levels]), head(levels))


@torch.no_grad()
def test_rounding_error_is_of_the_layers_order() -> None:
    model = trained()
    levels = features(model, 1, 3, 128, 128)
    exact = layer_by_layer(model, levels)
    single, levels = copy.deepcopy(model).float(), [level.float() for level in levels]
    composed, layers = folded(single)(levels), layer_by_layer(single, levels)
    assert not torch.equal(composed, layers)
    errors = [float((logits - exact).abs().max() / exact.abs().max()) for logits in (composed, layers)]
    assert errors[0] <= max(4 * errors[1], 1e-6)


def test_composed_only_where_it_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained().float()
    head, levels = folded(model), features(model, 1, 3, 64, 64)
    assert not composes(head, levels)  # gradients may be wanted
    with torch.no_grad():
        assert composes(head, levels)
        assert not composes(head, features(model, 1, 3, 64, 70))
        with torch.autocast("cpu", torch.bfloat16):
            assert not composes(head, levels)
        assert not composes(copy.deepcopy(head).bfloat16(), [level.bfloat16() for level in levels])
        assert not composes(copy.deepcopy(head).to("meta"), [level.to("meta") for level in levels])
        outputs: list[Tensor] = []
        hook = head.head.scales[0][0].register_forward_hook(lambda m, args, out: outputs.append(out))
        assert not composes(head, levels) and len(outputs) == 1
        hook.remove()
        assert composes(head, levels)
        monkeypatch.setattr(fpn, "MIN_POSITIONS", 16 * 16 * 2)
        assert not composes(head, levels) and composes(head, features(model, 2, 3, 64, 64))


def with_another_norm(model: Segmenter) -> None:
    model.head.scales[0][0].norm = nn.Identity()


def with_a_parametrization(model: Segmenter) -> None:
    nn.utils.parametrizations.weight_norm(model.head.scales[0][0].conv)


def with_a_hook(model: Segmenter) -> None:
    model.head.scales[0][0].register_forward_hook(lambda module, args, out: None)


@pytest.mark.parametrize("change", [with_another_norm, with_a_parametrization, with_a_hook])
def test_unknown_layers_are_not_folded(change: Callable[[Segmenter], None]) -> None:
    model = trained()
    change(model)
    fold_semantic_fpn(model)
    assert model.neck is not None and not isinstance(model.head, FoldedSemanticFPN)


@torch.inference_mode()
def test_an_optimized_segmenter_is_folded_and_follows_its_weights() -> None:
    model, image = trained().float(), torch.randn(1, 3, 64, 64)
    network = metaformer.optimize(model)
    logits = network(image)
    torch.testing.assert_close(logits, model(image), rtol=1e-4, atol=1e-5)
    head = network.head
    assert isinstance(head, FoldedSemanticFPN) and "levels" in head._cache
    copied = copy.deepcopy(network)
    torch.testing.assert_close(copied(image), logits)
    other = trained().float()
    other.head.scales[0][0].conv.weight.mul_(2)
    copied.load_state_dict(metaformer.optimize(other).state_dict())
    torch.testing.assert_close(copied(image), other(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(image), logits)
