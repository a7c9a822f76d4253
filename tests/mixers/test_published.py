"""Mixers against the published implementations in timm and torchvision, with the same weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from timm.layers import GatedMlp
from timm.layers.halo_attn import HaloAttn
from timm.models import (
    convnext,
    davit,
    efficientvit_mit,
    fastvit,
    inception_next,
    mambaout,
    mlp_mixer,
    pvt_v2,
    swin_transformer,
    xcit,
)
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from metaformer.backbones.block import build_mixer
from metaformer.deploy.optimize import optimize
from metaformer.factory import create_model

DIM, HEADS = 8, 2
"""Heads of 4 channels in most cases."""
WIDE = 24
"""Channels of mixers that divide them among several convolutions."""
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
    close: float = 1e-9
    """Largest difference of outputs and gradients, relative or absolute."""


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(tokens: Tensor, x: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(x.shape)


def on_maps(module: Any, x: Tensor) -> Tensor:
    return module(x)


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


def inception(options: str, *theirs: float) -> Oracle:
    build = partial(inception_next.InceptionDWConv2d, WIDE, *theirs)
    return Oracle(f"inception_dwconv{options}", (3, 14), build, on_maps, {}, WIDE)


def gated(options: str, **theirs: Any) -> Oracle:
    return Oracle(
        f"gated_dwconv{options}",
        (3, 14),
        partial(mambaout.GatedConvBlock, WIDE, norm_layer=nn.Identity, **theirs),
        lambda block, x: on_channels_last(block, x) - x,  # its own residual
        {},
        WIDE,
    )


def rep_mixer(scale: float | None = None) -> Oracle:
    names = {
        "norm": "norm.identity",
        "skip_norm": "mixer.identity",
        "point": "mixer.conv_scale.conv",
        "point_norm": "mixer.conv_scale.bn",
        "conv": "mixer.conv_kxk.0.conv",
        "conv_norm": "mixer.conv_kxk.0.bn",
    }
    return Oracle(
        "rep_mixer(kernel=5)",
        (5, 7),
        partial(fastvit.RepMixer, DIM, 5, layer_scale_init_value=scale),
        lambda module, x: module(x) - x,  # its own residual
        names,
    )


def over_positions(module: Any, x: Tensor) -> Tensor:
    return module(x.flatten(2)).reshape(x.shape)


def resmlp(block: Any, x: Tensor) -> Tensor:
    return block.linear_tokens(block.norm1(tokens(x)).transpose(1, 2)).reshape(x.shape)


GRID = (3, 5)
LITE_MLA = {"qkv": "qkv.conv", "proj": "proj.conv", "norm": "proj.norm", "scales": "aggreg"}
CONVOLUTIONS = [
    Oracle(
        "dwconv(kernel=7)",
        (3, 14),
        lambda: convnext.ConvNeXtBlock(WIDE).conv_dw,
        on_maps,
        {"conv": ""},
        WIDE,
    ),
    inception(""),
    inception("(kernel=5, band=9, ratio=0.25)", 5, 9, 0.25),
    gated(""),
    gated(
        "(expansion=3.0, kernel=5, conv_ratio=1.5, act='silu')",
        expansion_ratio=3.0,
        kernel_size=5,
        conv_ratio=1.5,
        act_layer=nn.SiLU,
    ),
]
"""Also on maps that are smaller than their kernels."""
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
            on_maps,
            {"conv": ""},
        )
        for groups in (1, 4)
    ),
    Oracle("token_mlp", GRID, lambda: mlp_mixer.MixerBlock(DIM, 15).mlp_tokens, over_positions, {}),
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
        on_maps,
        LITE_MLA,
        close=1e-5,  # both sum in float32
    ),
    rep_mixer(),
    *(of._replace(size=size) for of in CONVOLUTIONS for size in ((1, 1), (3, 14), (13, 7))),
]
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
    ours, close = made(of), {"rtol": of.close, "atol": of.close}
    theirs = with_our_weights(of, ours)
    ours.train(training)
    theirs.train(training)
    inputs = [torch.randn(2, of.dim, *of.size, dtype=torch.float64).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    found, wanted = ours(inputs[0]), of.run(theirs, inputs[1])
    torch.testing.assert_close(found, wanted, **close)
    direction = torch.randn_like(wanted)
    found.backward(direction)
    wanted.backward(direction)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **close)
    for name, parameter in ours.named_parameters():
        gradient = theirs.get_parameter(their_name(name, of.names)).grad
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient.reshape(parameter.shape), **close)


@pytest.mark.parametrize("scale", [0.3, None])
def test_a_rep_mixer_folds_as_theirs(scale: float | None) -> None:
    of = rep_mixer(scale)
    torch.manual_seed(0)
    network = create_model(
        "poolformer_n", num_classes=2, depths=(1,), dims=(DIM,), mixers=(of.spec,), norm="none",
        mlp_ratios=(0,), layer_scale=(scale,), downsamples=(), pos_embed=(False,), res_scale=(None,),
        image_size=(32, 32),
    ).eval()  # fmt: skip
    block = network.stages[0].blocks[0]
    theirs = with_our_weights(of, block.token_mixer).eval()
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
