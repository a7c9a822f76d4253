"""Mixers against the published implementations in timm and torchvision, with the same weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from timm.layers import GatedMlp
from timm.layers.halo_attn import HaloAttn
from timm.models import davit, efficientvit_mit, fastvit, mlp_mixer, pvt_v2, swin_transformer, xcit
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from metaformer.backbones.block import build_mixer
from metaformer.bench.counts import count
from metaformer.deploy.optimize import optimize
from metaformer.errors import ConfigError
from metaformer.factory import create_model

DIM, HEADS = 8, 2
"""Heads of 4 channels in most cases."""
Run = Callable[[Any, Tensor], Tensor]


class Oracle(NamedTuple):
    """A mixer and the module that it is compared with, on maps of some size."""

    spec: str
    size: tuple[int, int]
    build: Callable[[], nn.Module]
    run: Run
    """The module on (B, C, H, W)."""
    names: dict[str, str]
    """Beginnings of our parameters' names to theirs, where they differ."""
    dim: int = DIM


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(tokens: Tensor, x: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(x.shape)


def on_tokens(module: Any, x: Tensor) -> Tensor:
    return image(module(tokens(x)), x)


def on_channels_last(module: Any, x: Tensor) -> Tensor:
    return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def swin(size: tuple[int, int], shift: int) -> Oracle:
    names = {"qkv": "attn.qkv", "proj": "attn.proj", "relative_bias": "attn.relative_position_bias_table"}
    options = {"window_size": 3, "shift_size": shift, "always_partition": True, "dynamic_mask": True}
    return Oracle(
        f"window_attention(window=3, shift={shift}, head_dim=4)",
        size,
        lambda: swin_transformer.SwinTransformerBlock(DIM, size, HEADS, **options),
        lambda block, x: on_channels_last(block._attn, x),
        names,
    )


def swin_of_torchvision(size: tuple[int, int], shift: int) -> Oracle:
    """Its padding comes before the shift, as the original's for detection; timm shifts first."""
    return Oracle(
        f"window_attention(window=4, shift={shift}, head_dim=4)",
        size,
        lambda: ShiftedWindowAttention(DIM, [4, 4], [shift, shift], HEADS),
        on_channels_last,
        {"relative_bias": "relative_position_bias_table"},
    )


def pvt(options: str, names: dict[str, str], **theirs: Any) -> Oracle:
    return Oracle(
        f"spatial_reduction_attention({options}, head_dim=4)",
        (7, 9),
        lambda: pvt_v2.Attention(DIM, HEADS, **theirs),
        lambda module, x: image(module(tokens(x), x.shape[2:]), x),
        names,
    )


def halo(block: int, halo: int, bias: bool, size: tuple[int, int]) -> Oracle:
    def padded(module: Any, x: Tensor) -> Tensor:
        """Theirs takes whole blocks alone; without bias a padded map has the same keys and values."""
        y = module(F.pad(x, (0, -x.shape[3] % block, 0, -x.shape[2] % block)))
        return y[:, :, : x.shape[2], : x.shape[3]]

    options = {"dim_head": 5, "block_size": block, "halo_size": halo, "qkv_bias": bias}
    return Oracle(
        f"halo_attention(block={block}, halo={halo}, head_dim=5, qkv_bias={bias})",
        size,
        lambda: HaloAttn(12, num_heads=HEADS, **options),
        padded,
        {"height_rel": "pos_embed.height_rel", "width_rel": "pos_embed.width_rel"},
        dim=12,
    )


def over_positions(module: Any, x: Tensor) -> Tensor:
    return module(x.flatten(2)).reshape(x.shape)


def resmlp(block: Any, x: Tensor) -> Tensor:
    return block.linear_tokens(block.norm1(tokens(x)).transpose(1, 2)).reshape(x.shape)


GRID = (3, 5)
REP_MIXER = {
    "norm": "norm.identity",
    "skip_norm": "mixer.identity",
    "point": "mixer.conv_scale.conv",
    "point_norm": "mixer.conv_scale.bn",
    "conv": "mixer.conv_kxk.0.conv",
    "conv_norm": "mixer.conv_kxk.0.bn",
}
LITE_MLA = {"qkv": "qkv.conv", "proj": "proj.conv", "norm": "proj.norm", "scales": "aggreg"}
ORACLES = [
    swin((7, 8), 0),
    swin((9, 6), 1),
    swin_of_torchvision((7, 10), 2),
    swin_of_torchvision((3, 11), 3),  # one window high
    swin_of_torchvision((4, 2), 1),
    pvt("reduction=1", {}),
    pvt("reduction=2", {"reduce.0": "sr", "reduce.1": "norm"}, sr_ratio=2),
    pvt("reduction=5", {"reduce.0": "sr", "reduce.1": "norm"}, sr_ratio=5),
    pvt("linear=True", {"reduce.1": "sr", "reduce.2": "norm"}, linear_attn=True),
    halo(4, 1, True, (8, 12)),
    halo(4, 2, False, (8, 4)),
    halo(3, 0, False, (6, 3)),
    halo(4, 2, False, (5, 7)),
    *(
        Oracle(
            f"conv(kernel=5, groups={groups})",
            (5, 7),
            partial(nn.Conv2d, DIM, DIM, 5, padding=2, groups=groups),
            lambda module, x: module(x),
            {"conv": ""},
        )
        for groups in (1, 4)
    ),
    Oracle(
        "token_mlp", GRID, lambda: mlp_mixer.MixerBlock(DIM, 15).mlp_tokens, over_positions, {}
    ),
    Oracle(
        "resmlp",
        GRID,
        lambda: mlp_mixer.ResBlock(DIM, 15),
        resmlp,
        {"fc.fc": "linear_tokens", "alpha": "norm1.alpha", "beta": "norm1.beta"},
    ),
    Oracle(
        "spatial_gating(expansion=3)",
        GRID,
        lambda: GatedMlp(DIM, 3 * DIM, gate_layer=partial(mlp_mixer.SpatialGatingUnit, seq_len=15)),
        on_tokens,
        {"norm": "gate.norm", "gate.fc": "gate.proj"},
    ),
    Oracle("xca(head_dim=4)", (5, 7), lambda: xcit.XCA(DIM, HEADS, qkv_bias=True), on_tokens, {}),
    Oracle(
        "channel_attention(head_dim=4)",
        (5, 7),
        lambda: davit.ChannelAttention(DIM, HEADS, qkv_bias=True),
        on_tokens,
        {},
    ),
    Oracle(
        "lite_mla(head_dim=4, scales=(3, 5))",
        (5, 7),
        lambda: efficientvit_mit.LiteMLA(DIM, DIM, dim=4, scales=(3, 5)),
        lambda module, x: module(x),
        LITE_MLA,
    ),
    Oracle(
        "rep_mixer(kernel=5)",
        (5, 7),
        lambda: fastvit.RepMixer(DIM, 5, layer_scale_init_value=None),
        lambda module, x: module(x) - x,  # its own residual
        REP_MIXER,
    ),
]  # fmt: skip
each_oracle = pytest.mark.parametrize("of", ORACLES, ids=lambda of: f"{of.spec} {of.size}")


def made(of: Oracle) -> nn.Module:
    torch.manual_seed(0)
    return build_mixer(of.spec, of.dim, of.size, "strict").double()


def their_name(name: str, names: dict[str, str]) -> str:
    """Their name of our parameter, by the longest beginning that is known."""
    known = [one for one in names if name == one or name.startswith(f"{one}.")]
    if not known:
        return name
    first = max(known, key=len)
    return (names[first] + name.removeprefix(first)).removeprefix(".")


def with_our_weights(of: Oracle, ours: nn.Module) -> nn.Module:
    """Their module with random weights and statistics of ours."""
    theirs = of.build().double()
    state = theirs.state_dict()
    with torch.no_grad():
        for name, value in ours.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 2) if name.endswith("var") else value.normal_(std=0.5)
                target = state[their_name(name, of.names)]
                target.copy_(value.reshape(target.shape))
    return theirs


@each_oracle
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_gradients_are_theirs(of: Oracle, training: bool) -> None:
    ours = made(of)
    theirs = with_our_weights(of, ours)
    ours.train(training)
    theirs.train(training)
    inputs = [torch.randn(2, of.dim, *of.size, dtype=torch.float64).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    found, wanted = ours(inputs[0]), of.run(theirs, inputs[1])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(wanted)
    found.backward(direction)
    wanted.backward(direction)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    for name, parameter in ours.named_parameters():
        gradient = theirs.get_parameter(their_name(name, of.names)).grad
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient.reshape(parameter.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.3, None])
def test_a_rep_mixer_folds_as_theirs(scale: float | None) -> None:
    of = ORACLES[-1]
    theirs_of = of._replace(build=lambda: fastvit.RepMixer(DIM, 5, layer_scale_init_value=scale))
    torch.manual_seed(0)
    network = create_model(
        "poolformer_n", num_classes=2, depths=(1,), dims=(DIM,), mixers=(of.spec,), norm="none",
        mlp_ratios=(0,), layer_scale=(scale,), downsamples=(), pos_embed=(False,), res_scale=(None,),
        image_size=(32, 32),
    ).eval()  # fmt: skip
    block = network.stages[0].blocks[0]
    theirs = with_our_weights(theirs_of, block.token_mixer).eval()
    folded = optimize(network, compile=False).stages[0].blocks[0]
    x = torch.randn(2, DIM, 5, 7)
    with torch.inference_mode():
        wanted = theirs(x.double()).float()
        torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded(x), wanted, rtol=1e-5, atol=1e-5)
    theirs.reparameterize()
    assert folded.mixer.residual is None
    for name, value in theirs.reparam_conv.named_parameters():
        torch.testing.assert_close(getattr(folded.mixer.conv, name), value.float(), rtol=1e-5, atol=1e-5)


C, D, N = DIM, 4, 7 * 5
P, M = 8 * 8, 3 * 2
"""Positions of a 7×5 map: filled up to windows of 4, and behind a convolution of stride 2."""
MACS = {
    "window_attention(window=4, head_dim=4)": 3 * C * C * P + 2 * P * 16 * C + C * C * N,
    "window_attention(window=4, shift=2, head_dim=4)": 3 * C * C * P + 2 * P * 16 * C + C * C * N,
    "spatial_reduction_attention(head_dim=4)": 2 * C * C * N + (4 + 2) * C * C * M + 2 * N * M * C,
    "spatial_reduction_attention(head_dim=4, linear=True)": 2 * C * C * N + 3 * C * C * 49 + 2 * N * 49 * C,
    "halo_attention(block=4, halo=1, head_dim=4)": 3 * C * C * N + 2 * P * 36 * C + 2 * P * 6 * C,
    "conv(kernel=3, groups=2)": 9 * C * C // 2 * N,
    "token_mlp": 2 * N * C // 2 * C,
    "resmlp": N * N * C,
    "spatial_gating": 3 * C * C * N + N * N * C,
    "xca(head_dim=4)": 4 * C * C * N + 2 * C * D * N,
    "channel_attention(head_dim=4)": 4 * C * C * N + 2 * C * D * N,
    "lite_mla(head_dim=4, scales=(3,))": (3 + 2) * C * C * N + 3 * C * (9 + D) * N + 2 * 2 * C * D * N,
    "rep_mixer": C * (9 + 1) * N,
}


@pytest.mark.parametrize("spec", MACS)
def test_multiply_adds_are_counted_exactly(spec: str) -> None:
    assert count(build_mixer(spec, DIM, (7, 5), "strict"), (7, 5), DIM).macs == MACS[spec]


@pytest.mark.parametrize(
    ("spec", "noun"),
    [
        ("window_attention(window=0)", "window"),
        ("window_attention(window=2.5)", "window"),
        ("window_attention(window=4, shift=4)", "shift"),
        ("window_attention(head_dim=0)", "head_dim"),
        ("spatial_reduction_attention(reduction=0)", "reduction"),
        ("halo_attention(block=0)", "block"),
        ("halo_attention(block=4, halo=3)", "halo"),
        ("halo_attention(head_dim=2)", "divide dim 7"),
        ("conv(kernel=2)", "kernel"),
        ("conv(groups=3)", "groups"),
        ("token_mlp(expansion=0)", "expansion"),
        ("spatial_gating(expansion=1)", "expansion"),
        ("xca(head_dim=-1)", "head_dim"),
        ("channel_attention(head_dim=0)", "head_dim"),
        ("lite_mla(scales=(3, 4))", "scales"),
        ("lite_mla(scales=5)", "lite_mla"),
        ("rep_mixer(kernel=4)", "kernel"),
    ],
)
def test_options_out_of_range_are_refused_by_name(spec: str, noun: str) -> None:
    with pytest.raises(ConfigError, match=noun):
        build_mixer(spec, 7, (3, 3), "strict")


@pytest.mark.parametrize(
    "spec",
    [
        "window_attention(window=3, shift=1)",
        "spatial_reduction_attention(reduction=4)",
        "spatial_reduction_attention(linear=True)",
        "halo_attention(block=3, halo=0)",
        "lite_mla(scales=(3, 5))",
    ],
)
def test_symbolic_sizes_are_any_size(spec: str) -> None:
    mixer = build_mixer(spec, DIM, (1, 1), "strict").eval()
    graph = torch.fx.symbolic_trace(mixer)
    for size in ((1, 1), (7, 5), (2, 9), (3, 4)):
        x = torch.randn(2, DIM, *size)
        torch.testing.assert_close(graph(x), mixer(x))


def test_sums_of_linear_attention_are_float32s() -> None:
    mixer = build_mixer("lite_mla(head_dim=4, scales=())", DIM, (1, 1), "strict").eval()
    x = torch.rand(1, DIM, 64, 64) * 1000
    with torch.no_grad():
        nn.init.constant_(mixer.qkv.weight, 0.05)
        wanted = mixer(x)
        assert wanted.abs().max() > 1
        torch.testing.assert_close(mixer.half()(x.half()).float(), wanted, rtol=1e-2, atol=1e-2)
        with torch.autocast("cpu", torch.bfloat16):
            got = mixer.float()(x)
    torch.testing.assert_close(got.float(), wanted, rtol=5e-2, atol=5e-2)
