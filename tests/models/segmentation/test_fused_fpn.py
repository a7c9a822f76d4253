"""The short way through Semantic FPN: the same function, only where it may be, never with old weights."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.fused_fpn import FusedSemanticFPN, fits
from metaformer.models.segmentation.segmenter import Segmenter

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = SegmenterConfig(backbone=TINY, num_classes=7, fpn_dim=32, head_dim=6)


@pytest.fixture(autouse=True)
def always_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaformer.models.segmentation.fused_fpn.WORTHWHILE", 0)


def trained(config: SegmenterConfig = CONFIG) -> Segmenter:
    torch.manual_seed(0)
    model = Segmenter(config).double().eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * (1.0 if "running_var" in name else 0.3))
    return model


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 128), (32, 64)])
@pytest.mark.parametrize("fpn_dim", [32, 24, 8])  # of the finest levels none, one and two are multiplied out
@torch.no_grad()
def test_the_same_function(size: tuple[int, int], fpn_dim: int) -> None:
    model = trained(replace(CONFIG, fpn_dim=fpn_dim))
    neck, head = model.neck, model.head
    assert neck is not None
    maps = model.backbone(torch.randn(2, 3, *size, dtype=torch.float64))
    assert fits(neck, head, maps)
    fused = FusedSemanticFPN(neck, head)  # type: ignore[arg-type]
    expected = head.features(neck(maps))
    assert (fused.features(maps) - expected).abs().max() <= 1e-12 * expected.abs().max()
    contiguous = [level.contiguous() for level in maps]
    assert torch.equal(fused.features(contiguous), fused.features(maps))


@torch.no_grad()
def test_rounding_is_of_the_order_of_the_long_ways() -> None:
    model = trained()
    image = torch.randn(1, 3, 128, 128)
    exact = model.forward_head(image.double())
    single = copy.deepcopy(model).float()
    short = single.forward_head(image)
    with torch.enable_grad():
        long = single.forward_head(image).detach()
    assert not torch.equal(short, long)
    wrong = [float((way - exact).abs().max() / exact.abs().max()) for way in (short, long)]
    assert wrong[0] <= max(4 * wrong[1], 1e-6)


def short_way(model: Segmenter, image: Tensor) -> bool:
    """Whether an image takes it."""
    model._fused = None
    model.forward_head(image)
    return model._fused is not None


def test_taken_only_where_it_may_be() -> None:
    model = trained().float()
    image = torch.randn(1, 3, 64, 64)
    assert not short_way(model, image)  # somebody may want gradients
    with torch.no_grad():
        assert short_way(model, image)
        assert not short_way(model, torch.randn(1, 3, 64, 70))
        with torch.autocast("cpu", torch.bfloat16):
            assert not short_way(model, image)
        assert not short_way(model.train(), image)
        assert not short_way(copy.deepcopy(model).eval().bfloat16(), image.bfloat16())
        seen: list[Tensor] = []
        handle = model.eval().head.scales[0][0].register_forward_hook(lambda m, args, out: seen.append(out))
        model.forward_head(image)
        assert len(seen) == 1
        handle.remove()
        assert short_way(model, image)
        assert not short_way(copy.deepcopy(model).to("meta"), image.to("meta"))
        other = copy.deepcopy(model)
        other.head.scales[0][0].norm = torch.nn.Identity()
        assert not short_way(other, image)
        frozen = copy.deepcopy(model)
        torch.nn.utils.parametrizations.weight_norm(frozen.head.scales[0][0].conv)
        assert not short_way(frozen, image)
    with torch.inference_mode():
        assert short_way(model, image)
        assert short_way(Segmenter(CONFIG).eval(), image)


def test_not_worth_it_for_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaformer.models.segmentation.fused_fpn.WORTHWHILE", 16 * 16 * 2)
    with torch.no_grad():
        model = trained().float()
        assert not short_way(model, torch.randn(1, 3, 64, 64)) and short_way(model, torch.randn(2, 3, 64, 64))


def with_optimizer(model: Segmenter) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def with_assignment(model: Segmenter) -> None:
    state = {name: torch.rand_like(value) for name, value in model.state_dict().items() if value.ndim}
    model.load_state_dict(state, strict=False, assign=True)


def with_data(model: Segmenter) -> None:
    for parameter in model.parameters():
        parameter.data = torch.rand_like(parameter)


def with_training(model: Segmenter) -> None:
    model.train()
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))  # moves the running statistics
    model.eval()


def with_hidden_writing(model: Segmenter) -> None:
    model.head.scales[2][0].conv.weight.data[0, 0, 0, 0] += 10  # no counter sees this


def with_another_part(model: Segmenter) -> None:
    model.head.scales[0][0].norm.running_mean = torch.full((6,), -1e4)


@pytest.mark.parametrize(
    "change",
    [with_optimizer, with_assignment, with_data, with_training, with_hidden_writing, with_another_part],
)
def test_never_with_old_weights(change: Callable[[Segmenter], None]) -> None:
    model, image = trained().float(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.forward_head(image)
    change(model)
    with torch.no_grad():
        after = model.forward_head(image)
        assert model._fused is not None
    again = model.forward_head(image).detach()
    assert (after - again).abs().max() <= 1e-4 * again.abs().max()
    assert not torch.allclose(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))


def test_copies_have_their_own() -> None:
    model, image = trained().float(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.forward_head(image)
        copied = copy.deepcopy(model)
        copied.head.scales[0][0].conv.weight.zero_()
        assert not torch.equal(copied.forward_head(image), before) and torch.equal(
            model.forward_head(image), before
        )
    assert not any("fused" in name for name in model.state_dict())
