import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.fast_mlp import has_hooks, mlp_branch, supports
from metaformer.layers.act import ACTS
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.pointwise import Pointwise
from metaformer.layers.scale import Scale
from metaformer.ops import onednn

Modules = tuple[nn.Module, Mlp, nn.Module]
X = torch.randn(2, 6, 5, 3)


def modules(norm: str = "group_norm", act: str = "gelu", scaled: bool = True, **options: Any) -> Modules:
    """Norm, MLP and scale with random parameters."""
    torch.manual_seed(0)
    built = NORMS.build(norm, 6), Mlp(6, 12, act=act, **options), Scale(6) if scaled else nn.Identity()
    for module in built:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return built


def gradients(modules: Modules, function: Callable[..., Tensor], x: Tensor = X) -> list[Tensor]:
    """Result, and gradients of the input and of all parameters."""
    modules, x = copy.deepcopy(modules), x.clone().requires_grad_()
    y = function(x, *modules)
    y.float().pow(2).sum().backward()
    gradients = [p.grad for module in modules for p in module.parameters()]
    return [y.detach(), *(grad for grad in (x.grad, *gradients) if grad is not None)]


def reference(x: Tensor, norm: nn.Module, mlp: nn.Module, scale: nn.Module) -> Tensor:
    return x + scale(mlp(norm(x)))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"scaled": False}], ids=str)
@pytest.mark.parametrize("act", ["gelu", "relu", "squared_relu", "star_relu"])
@pytest.mark.parametrize("norm", list(NORMS))
def test_branch_is_norm_mlp_and_scale(norm: str, act: str, options: dict[str, Any]) -> None:
    built = modules(norm, act, **options)
    assert supports(X, *built[1:], True)
    for residual in (True, False):
        found = gradients(built, lambda x, *each: mlp_branch(x, *each, residual) + (0 if residual else x))  # noqa: B023
        wanted = gradients(built, reference)
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_autocast_multiplies_in_bfloat16_and_adds_in_float32() -> None:
    built, x = modules(), X * 100
    exact = gradients(built, reference, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert supports(x, *built[1:], True) == onednn.has_dtype(torch.bfloat16)
        found = gradients(built, lambda x, *each: mlp_branch(x, *each, True), x)
        assert mlp_branch(x, *built, False).dtype == torch.bfloat16
    assert [tensor.dtype for tensor in found] == [torch.float32] * len(found)
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).abs().max() <= 0.05 * theirs.abs().max()


def test_compiles_without_graph_breaks() -> None:
    built = modules(act="star_relu", norm="layer_norm")
    compiled = torch.compile(lambda x, *each: mlp_branch(x, *each, True), backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients(built, compiled), gradients(built, reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


class Foreign(nn.Module):
    """Linear layer of a user's own, such as an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Pointwise(6, 12)


def test_unknown_modules_dtypes_and_devices_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    _, mlp, scale = modules()
    assert not supports(X.double(), mlp, scale, True)
    assert not supports(X[:0], mlp, scale, True) and not supports(X.to("meta"), mlp, scale, True)
    assert not supports(X, nn.Identity(), scale, True)
    assert not supports(X, mlp, nn.Conv2d(6, 6, 1), True)
    assert not supports(X, modules(act="silu")[1], scale, True)
    assert "silu" in ACTS
    assert not supports(X, modules(dropout=0.1)[1], scale, True)
    assert supports(X, modules(dropout=0.1)[1].eval(), scale, True)
    approximate, adapted = copy.deepcopy(mlp), copy.deepcopy(mlp)
    approximate.act, adapted.fc1 = nn.GELU("tanh"), Foreign()  # type: ignore[assignment]
    assert not supports(X, approximate, scale, True) and not supports(X, adapted, scale, True)
    with torch.no_grad():
        assert not supports(X, mlp, scale, True)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    assert not supports(X, mlp, scale, True)


def test_flop_counters_and_transforms_get_plain_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    built, supported = modules(), []
    with FlopCounterMode(display=False):
        supported.append(supports(X, *built[1:], True))
    torch.vmap(lambda x: supported.append(supports(x, *built[1:], True)) or x)(X[:, None])
    assert supported == [False, False]


@pytest.mark.parametrize("threads", [1, 2])
def test_unasked_it_runs_where_it_is_faster(threads: int) -> None:
    built, before = modules(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert supports(X, *built[1:], False) == (threads == 1)
        assert not supports(X.repeat(8, 1, 1, 1), *built[1:], False)
        assert not supports(X.bfloat16(), *built[1:], False)
    finally:
        torch.set_num_threads(before)


def test_hooks_of_every_kind_are_found() -> None:
    norm, mlp, scale = modules()
    assert not has_hooks(norm, mlp, scale)
    hook = mlp.fc2.register_forward_hook(lambda *_: None)
    assert has_hooks(norm, mlp, scale) and not has_hooks(norm, scale)
    hook.remove()
    for register in ("register_forward_pre_hook", "register_full_backward_hook"):
        hook = getattr(norm, register)(lambda *_: None)
        assert has_hooks(norm)
        hook.remove()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert has_hooks(norm)
    hook.remove()
    assert not has_hooks(norm, mlp, scale)
