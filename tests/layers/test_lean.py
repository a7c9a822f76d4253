import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.layers.act import ACTS
from metaformer.layers.lean import can_recompute, mlp_branch, watched
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS, BatchNorm
from metaformer.layers.pointwise import Pointwise
from metaformer.layers.scale import Scale

Parts = tuple[nn.Module, Mlp, nn.Module]
X = torch.randn(2, 6, 5, 3)


def parts(norm: str = "group_norm", act: str = "gelu", scaled: bool = True, **options: Any) -> Parts:
    """Norm, MLP and scale whose numbers are all their own."""
    torch.manual_seed(0)
    made = NORMS.build(norm, 6), Mlp(6, 12, act=act, **options), Scale(6) if scaled else nn.Identity()
    for module in made:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return made


def learned(parts: Parts, how: Callable[..., Tensor], x: Tensor = X) -> list[Tensor]:
    """Result and gradients of the input and of all parameters."""
    parts, x = copy.deepcopy(parts), x.clone().requires_grad_()
    y = how(x, *parts)
    y.float().pow(2).sum().backward()
    gradients = [p.grad for module in parts for p in module.parameters()]
    return [y.detach(), *(grad for grad in (x.grad, *gradients) if grad is not None)]


def plainly(x: Tensor, norm: nn.Module, mlp: nn.Module, scale: nn.Module) -> Tensor:
    return x + scale(mlp(norm(x)))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"scaled": False}], ids=str)
@pytest.mark.parametrize("act", ["gelu", "relu", "squared_relu", "star_relu"])
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm", "none"])
def test_is_norm_mlp_and_scale(norm: str, act: str, options: dict[str, Any]) -> None:
    made = parts(norm, act, **options)
    assert can_recompute(X, *made, True)
    for shortcut in (True, False):
        found = learned(made, lambda x, *each: mlp_branch(x, *each, shortcut) + (0 if shortcut else x))  # noqa: B023
        wanted = learned(made, plainly)
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_autocast_multiplies_in_bfloat16_and_keeps_the_shortcut() -> None:
    made, x = parts(), X * 100
    exact = learned(made, plainly, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert can_recompute(x, *made, True)
        found = learned(made, lambda x, *each: mlp_branch(x, *each, True), x)
        assert mlp_branch(x, *made, False).dtype == torch.bfloat16
    assert [tensor.dtype for tensor in found] == [torch.float32] * len(found)
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).abs().max() <= 0.05 * theirs.abs().max()


def test_a_compiler_takes_it_whole() -> None:
    made = parts(act="star_relu", norm="layer_norm")
    compiled = torch.compile(lambda x, *each: mlp_branch(x, *each, True), backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(learned(made, compiled), learned(made, plainly), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


class Foreign(nn.Module):
    """A product of a user's own, such as an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Pointwise(6, 12)


def test_what_it_does_not_know_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, mlp, scale = parts()
    assert not can_recompute(X.double(), norm, mlp, scale, True)
    assert not can_recompute(X[:0], norm, mlp, scale, True) and not can_recompute(
        X.to("meta"), norm, mlp, scale, True
    )
    assert not can_recompute(X, BatchNorm(6), mlp, scale, True) and not can_recompute(
        X, norm, nn.Identity(), scale, True
    )
    assert not can_recompute(X, norm, mlp, nn.Conv2d(6, 6, 1), True)
    assert not can_recompute(X, norm, parts(act="silu")[1], scale, True)
    assert "silu" in ACTS
    assert not can_recompute(X, norm, parts(dropout=0.1)[1], scale, True)
    assert can_recompute(X, norm, parts(dropout=0.1)[1].eval(), scale, True)
    approximate, adapted = copy.deepcopy(mlp), copy.deepcopy(mlp)
    approximate.act, adapted.fc1 = nn.GELU("tanh"), Foreign()  # type: ignore[assignment]
    assert not can_recompute(X, norm, approximate, scale, True) and not can_recompute(
        X, norm, adapted, scale, True
    )
    with torch.no_grad():
        assert not can_recompute(X, norm, mlp, scale, True)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    assert not can_recompute(X, norm, mlp, scale, True)


def test_whoever_looks_at_operations_sees_plain_ones() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    made, seen = parts(), []
    with FlopCounterMode(display=False):
        seen.append(can_recompute(X, *made, True))
    torch.vmap(lambda x: seen.append(can_recompute(x, *made, True)) or x)(X[:, None])
    assert seen == [False, False]


@pytest.mark.parametrize("threads", [1, 2])
def test_unasked_it_runs_where_convolutions_are_slow(threads: int) -> None:
    made, before = parts(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert can_recompute(X, *made, False) == (threads == 1)
        assert not can_recompute(X.repeat(8, 1, 1, 1), *made, False)
        assert not can_recompute(X.bfloat16(), *made, False)
    finally:
        torch.set_num_threads(before)


def test_hooks_are_noticed() -> None:
    norm, mlp, scale = parts()
    assert not watched(norm, mlp, scale)
    hook = mlp.fc2.register_forward_hook(lambda *_: None)
    assert watched(norm, mlp, scale) and not watched(norm, scale)
    hook.remove()
    for register in ("register_forward_pre_hook", "register_full_backward_hook"):
        hook = getattr(norm, register)(lambda *_: None)
        assert watched(norm)
        hook.remove()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert watched(norm)
    hook.remove()
    assert not watched(norm, mlp, scale)
