"""Blocks, stages and heads."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.block import FORMS, Block, build_block, build_mixer
from metaformer.backbones.config import BLOCKS, HEADS, MetaFormerConfig
from metaformer.backbones.head import Head
from metaformer.backbones.stage import Recompute, Stage
from metaformer.layers.drop_path import DropPath
from metaformer.layers.scale import Scale
from metaformer.ops.cpp import kernels
from ops.numerics import needs_cpp

TINY = {"depths": (1,), "dims": (6,), "downsamples": (), "pos_embed": (False,), "mlp_ratios": (2,)}


def block(**changes: object) -> Block:
    fields = {**TINY, "mixers": ("pooling",), "layer_scale": (0.5,), "res_scale": (None,), **changes}
    return build_block(MetaFormerConfig(**fields), 0, fields["mixers"][0], 0.0).double()  # type: ignore[arg-type,index]


def drop_paths(b: Block, rate: float) -> None:
    """Set the rate of stochastic depth."""
    for part in b.modules():
        if isinstance(part, DropPath):
            part.rate = rate


X = torch.randn(2, 6, 5, 5, dtype=torch.float64)


def test_two_scaled_branches_with_residuals() -> None:
    b = block(res_scale=(2.0,), skip_lam=4.0)
    x = 2 * X + 0.5 * b.token_mixer(b.norm1(X)) / 4
    torch.testing.assert_close(b(X), 2 * x + 0.5 * b.mlp(b.norm2(x)) / 4)


def test_one_scaled_branch_with_a_residual() -> None:
    b = block(block="metanext", res_scale=(2.0,), skip_lam=4.0)
    torch.testing.assert_close(b(X), 2 * X + 0.5 * b.mlp(b.norm(b.token_mixer(X))) / 4)
    assert not torch.allclose(block(block="metanext", residual=False)(X), block(block="metanext")(X))


def test_every_form_has_a_name() -> None:
    assert tuple(FORMS) == BLOCKS


def test_no_residual_and_no_mlp() -> None:
    torch.testing.assert_close(
        block(residual=False, mlp_ratios=(0,), layer_scale=(None,))(X), block().token_mixer(block().norm1(X))
    )
    assert not any(name.startswith(("mlp", "norm2")) for name, _ in block(mlp_ratios=(0,)).named_parameters())


class Fused(nn.Module):
    """Mixer with a fused form of norm, mixer and scale; `calls` proves that it ran."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def fused(self, x: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        self.calls += 1
        return scale(norm(x).flip(-1))


class Plain(Fused):
    """The same without the fused form."""

    fused = None  # type: ignore[assignment]


def test_a_fused_form_is_used_where_the_mixer_has_one() -> None:
    fused, plain = block(mixers=(Fused,)), block(mixers=(Plain,))
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(X), plain(X))
    assert fused.token_mixer.calls == 1 and plain.token_mixer.calls == 0


CHANGES = [
    {},
    {"layer_scale": (None,)},
    {"res_scale": (0.5,)},
    {"skip_lam": 2.0},
    {"residual": False},
    {"norm": "layer_norm", "act": "star_relu", "mlp_bias": False},
    {"mixers": ("sepconv",), "norm": "layer_norm"},
    {"block": "metanext", "norm": "layer_norm", "mixers": ("dwconv",)},
    {"block": "metanext", "norm": "batch_norm", "res_scale": (0.5,), "skip_lam": 2.0},
]


def gradients(b: Block, x: Tensor, **options: bool) -> list[Tensor]:
    """Result and gradients of a block, with the same random numbers each time."""
    torch.manual_seed(0)
    b.zero_grad()
    x = x.clone().requires_grad_()
    y = b(x, **options)
    y.float().pow(2).sum().backward()
    grads = [p.grad.clone() for p in b.parameters() if p.grad is not None]
    assert x.grad is not None and len(grads) == len(list(b.parameters()))
    return [y.detach(), x.grad, *grads]


def saved(b: Block, x: Tensor, **options: bool) -> int:
    """Numbers that a block saves for its backward pass, weights aside."""
    weights, found = {p.data_ptr() for p in b.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            found[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = b(x.clone().requires_grad_(), **options)
    assert y.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_fast_mlp_has_the_gradients_of_plain_pytorch(
    changes: dict[str, object], drop_path: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, x = block(**changes).float().train(), torch.randn(4, 6, 5, 5)
    drop_paths(b, drop_path)
    found = gradients(b, x, recompute_mlp=True)
    with monkeypatch.context() as patch:
        patch.setattr("metaformer.backbones.fast_mlp.mlp_branch", None)  # proves that it ran
        with pytest.raises(TypeError):
            b(x, recompute_mlp=True)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    for ours, theirs in zip(found, gradients(b, x), strict=True):
        largest = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_recomputing_the_mlp_changes_nothing_but_memory(changes: dict[str, object], dropout: float) -> None:
    b, x = block(dropout=dropout, **changes).train(), torch.randn(4, 6, 5, 5, dtype=torch.float64)
    drop_paths(b, 0.5)
    plain, recomputed = gradients(b, x), gradients(b, x, recompute_mlp=True)
    for ours, theirs in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("form", BLOCKS)
def test_what_is_saved_for_the_backward_pass(form: str) -> None:
    b, x = block(mlp_ratios=(4,), block=form).train(), torch.randn(2, 6, 16, 16, dtype=torch.float64)
    assert saved(b, x) > 10 * x.numel()
    assert saved(b, x, recompute_mlp=True) < 2.2 * x.numel()
    assert saved(b.float(), x.float(), recompute_mlp=True) < 2.2 * x.numel()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_small_scale_survives_float16(recompute: bool) -> None:
    b, x = block(layer_scale=(1e-5,)).float().train(), torch.randn(2, 6, 5, 5)
    exact = gradients(b, x)
    with torch.autocast("cpu", dtype=torch.float16):
        found = gradients(b, x, recompute_mlp=recompute)
    change, wanted = found[0] - x, exact[0] - x
    assert (change - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_hooks_of_every_part_are_called() -> None:
    b, called = block().float().train(), []
    for name in ("norm1", "token_mixer", "layer_scale1", "norm2", "mlp.fc1", "mlp.act", "layer_scale2"):
        b.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    b(X.float(), recompute_mlp=True)
    assert called == ["norm1", "token_mixer", "layer_scale1", "norm2", "mlp.fc1", "mlp.act", "layer_scale2"]


@needs_cpp
@pytest.mark.parametrize("autocast", [False, True])
def test_pooling_trains_as_one_operation(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    b, x = block().float().train(), torch.randn(4, 6, 5, 5)
    b.drop_path1 = DropPath(0.5)
    found, grads = {}, {}
    for name in ("auto", "reference"):
        monkeypatch.setenv("METAFORMER_OPS", name)
        with kernels.record_calls() as calls, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            grads[name] = gradients(b, x.bfloat16() if autocast else x)
        found[name] = {str(function.__name__).rpartition("_")[0] for function, _ in calls}
    assert {"pool_residual", "pool_residual_backward"} <= found["auto"] and not found["reference"]
    for ours, theirs in zip(grads["auto"], grads["reference"], strict=True):
        assert ours.dtype == theirs.dtype
        largest = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=(5e-2 if autocast else 1e-5) * largest)


@needs_cpp
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_pooling_is_one_operation_in_evaluation(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    b, x, found = block().float().eval(), torch.randn(2, 6, 5, 5), {}
    for name in ("auto", "reference"):
        monkeypatch.setenv("METAFORMER_OPS", name)
        with kernels.record_calls() as calls, context():
            found[name] = b(x)
        assert [str(function.__name__) for function, _ in calls] == ["pool_residual_float32"] * (
            name == "auto"
        )
    torch.testing.assert_close(found["auto"], found["reference"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["drop_path1", "res_scale1", "norm1"])
def test_hooks_of_the_first_half_are_called(name: str) -> None:
    b, called = block().float().train(), []
    b.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
    b(X.float())
    assert called == [name]


def test_drop_path_drops_both_branches() -> None:
    b = block().train()
    b.drop_path1, b.drop_path2 = DropPath(0.999999), DropPath(0.999999)
    assert torch.equal(b(X), X)


def test_scales_start_at_their_values() -> None:
    scales = [m.scale.unique().tolist() for m in block(res_scale=(3.0,)).modules() if isinstance(m, Scale)]
    assert sorted(scales) == [[0.5], [0.5], [3.0], [3.0]]


@pytest.mark.parametrize("spec", ["identity", nn.Identity, lambda dim: nn.Conv2d(dim, dim, 1)])
def test_mixers_by_name_class_or_callable(spec: object) -> None:
    assert build_mixer(spec, 6, (5, 5), "strict")(X.float()).shape == X.shape  # type: ignore[arg-type]


CONFIG = MetaFormerConfig(
    depths=(1, 3), dims=(4, 4), mlp_ratios=(2, 2), mixers=("pooling", "pooling"), layer_scale=(1.0, 1.0),
    res_scale=(None, None), pos_embed=(False, True), downsamples=(True,), drop_path_rate=0.3,
    image_size=(32, 32),
)  # fmt: skip


def test_downsample_position_blocks() -> None:
    stage = Stage(CONFIG, 1).eval()
    torch.nn.init.normal_(stage.pos_embed.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(stage(x), stage.blocks(stage.downsample(x) + stage.pos_embed.weight))
    assert stage(x).shape == (2, 4, 4, 4)


def test_drop_path_grows_over_the_whole_network() -> None:
    rates = [m.rate for i in (0, 1) for m in Stage(CONFIG, i).modules() if isinstance(m, DropPath)]
    torch.testing.assert_close(rates[::2], [0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_checkpointing_gives_the_same_gradients(dtype: torch.dtype) -> None:
    stage = Stage(CONFIG, 1).to(dtype).train()
    grads = []
    modes: tuple[Recompute, ...] = (False, True, "mlp")
    for on in modes:
        torch.manual_seed(0)
        stage.grad_checkpointing = on
        stage.zero_grad()
        stage(torch.ones(2, 4, 8, 8, dtype=dtype)).square().sum().backward()
        grads.append([p.grad.clone() for p in stage.parameters() if p.grad is not None])
    for plain, *others in zip(*grads, strict=True):
        for other in others:
            torch.testing.assert_close(other, plain)


def test_stage_without_downsampling() -> None:
    stage = Stage(replace(CONFIG, downsamples=(False,), pos_embed=(False, False)), 1)
    assert stage(torch.randn(1, 4, 8, 8)).shape == (1, 4, 8, 8)


FEATURES = torch.randn(3, 8, 4, 5)


def head(**changes: object) -> Head:
    return Head(MetaFormerConfig(dims=(2, 2, 2, 8), num_classes=5, **changes))  # type: ignore[arg-type]


def test_order_of_norm_and_average_matters() -> None:
    first, last = head(head="norm_pool_fc", norm="layer_norm"), head(head="pool_norm_fc")
    last.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(FEATURES), first.fc(first.norm(FEATURES).mean((2, 3))))
    torch.testing.assert_close(last(FEATURES), last.fc(last.norm(FEATURES.mean((2, 3)))))
    assert not torch.allclose(first(FEATURES), last(FEATURES))


@pytest.mark.parametrize("name", HEADS)
def test_every_head_drops_classifies_and_resets(name: str) -> None:
    built = head(head=name, head_dropout=0.5)
    assert built(FEATURES).shape == (3, 5)
    assert not torch.equal(built.train()(FEATURES), built(FEATURES))
    assert torch.equal(built.eval()(FEATURES), built(FEATURES))
    assert built(FEATURES, pre_logits=True).shape == (3, 8)
    built.reset(8, 9, "")
    assert built(FEATURES).shape == (3, 9, 4, 5)
    built.reset(8, 0, "max")
    assert built(FEATURES).shape == (3, 8)


def test_max_pooling() -> None:
    built = head(head="norm_pool_fc", norm="none", global_pool="max")
    torch.testing.assert_close(built(FEATURES, pre_logits=True), FEATURES.amax((2, 3)))


def test_mlp_head_norm_has_its_own_epsilon() -> None:
    built = head(head="pool_norm_mlp", norm_eps=1e-6)
    assert (built.norm.eps, built.fc.norm.eps) == (1e-6, 1e-5)


def test_an_mlp_head_of_another_form() -> None:
    built = head(head="pool_mlp", head_mlp_ratio=3, head_mlp_act="gelu", head_mlp_norm_eps=None)
    hidden = torch.nn.functional.gelu(built.fc.fc1(FEATURES.mean((2, 3))))
    torch.testing.assert_close(built(FEATURES), built.fc.fc2(hidden))
    assert hidden.shape == (3, 24)
