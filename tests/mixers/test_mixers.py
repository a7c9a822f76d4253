"""What each token mixer computes."""

import inspect
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaformer.backbones.block import build_mixer
from metaformer.bench.counts import count
from metaformer.errors import ConfigError
from metaformer.layers.cycle_fc import CycleFC
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.testing import MixerCase


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_average_of_the_positions_inside_less_the_token(size: int) -> None:
    x = torch.randn(1, 2, 4, 6)
    y = MIXERS.build(f"pooling(size={size})", 2)(x)
    for row in range(4):
        for column in range(6):
            reach = size // 2
            window = x[
                ..., max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
            ]
            torch.testing.assert_close(y[..., row, column], window.mean((2, 3)) - x[..., row, column])


def test_a_constant_map_gives_zero_at_the_border_too() -> None:
    assert MIXERS.build("pooling", 1)(torch.ones(1, 1, 5, 5)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        *((f"pooling(size={size})", "odd") for size in (0, 2, -3)),
        ("sepconv(kernel=6)", "odd"),
        ("dwconv(kernel=4)", "odd"),
        ("inception_dwconv(band=4)", "odd"),
        ("inception_dwconv(kernel=2)", "odd"),
        ("dwconv(std=0)", "std"),
        *((f"inception_dwconv(ratio={ratio})", "ratio") for ratio in (0.5, -1, 1e999)),
        *(
            (f"{name}='x')", "'x'")
            for name in ("inception_dwconv(ratio", "gated_dwconv(expansion", "dwconv(std")
        ),
        ("gated_dwconv(kernel=6)", "odd"),
        ("gated_dwconv(conv_ratio=0)", "conv_ratio"),
        ("gated_dwconv(conv_ratio=4)", "at most its expansion"),
        ("gated_dwconv(expansion=1e999)", "expansion"),
        ("attention(head_dim=0)", "head_dim"),
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
def test_options_that_cannot_be_are_refused(spec: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_mixer(spec, 7, (3, 3), "strict")


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("norm", list(NORMS))
def test_fused_is_norm_pooling_and_scale(norm: str, scaled: bool) -> None:
    torch.manual_seed(0)
    pooling, before = MIXERS.build("pooling", 5), NORMS.build(norm, 5).double()
    scale = Scale(5).double() if scaled else nn.Identity()
    parameters = [*before.parameters(), *scale.parameters()]
    for parameter in parameters:
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 4, 7, dtype=torch.float64, requires_grad=True)
    found, wanted = pooling.fused(x, before, scale), scale(pooling(before(x)))
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(y.pow(3).sum(), (x, *parameters)) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)


def test_softmax_attention_written_out() -> None:
    mixer = MIXERS.build("attention(head_dim=4, qkv_bias=True, proj_bias=True)", 8).double()
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ mixer.qkv.weight[:, :, 0, 0].T + mixer.qkv.bias).split(8, dim=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = (q[..., head] @ k[..., head].transpose(1, 2) / 2).softmax(-1)
        heads.append(scores @ v[..., head])
    expected = torch.cat(heads, -1) @ mixer.proj.weight[:, :, 0, 0].T + mixer.proj.bias
    torch.testing.assert_close(mixer(x).flatten(2).transpose(1, 2), expected)


def test_narrow_maps_have_one_head() -> None:
    assert MIXERS.build("attention", 8)(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


def test_dropout_acts_in_training_only() -> None:
    mixer = MIXERS.build("attention(head_dim=4, dropout=0.5)", 8)
    x = torch.randn(1, 8, 4, 4)
    assert not torch.equal(mixer.train()(x), mixer(x))
    assert torch.equal(mixer.eval()(x), mixer(x))


def test_frozen_average_over_all_positions() -> None:
    mixer = build_mixer("random", 3, (2, 3), "strict")
    assert not mixer.random_matrix.requires_grad
    torch.testing.assert_close(mixer.random_matrix.sum(1), torch.ones(6))
    assert mixer.random_matrix.min() > 0
    x = torch.randn(2, 3, 2, 3)
    expected = torch.einsum("mn,bcn->bcm", mixer.random_matrix, x.flatten(2)).reshape(x.shape)
    torch.testing.assert_close(mixer(x), expected)


def test_one_matrix_over_positions_for_every_channel() -> None:
    mixer = build_mixer("spatial_fc", 3, (2, 3), "strict")
    x = torch.randn(2, 3, 2, 3)
    expected = torch.einsum("mn,bcn->bcm", mixer.fc.weight, x.flatten(2)).reshape(x.shape)
    torch.testing.assert_close(mixer(x), expected)
    assert mixer.fc.bias is None


def test_widen_activate_convolve_narrow() -> None:
    mixer = MIXERS.build("sepconv(kernel=3, expansion=2)", 4)
    assert {name for name, _ in mixer.named_parameters()} == {
        "pwconv1.weight", "act1.scale", "act1.bias", "dwconv.weight", "pwconv2.weight",
    }  # fmt: skip
    x = torch.randn(2, 4, 5, 5)
    hidden = F.relu(F.conv2d(x, mixer.pwconv1.weight)) ** 2 * mixer.act1.scale + mixer.act1.bias
    expected = F.conv2d(F.conv2d(hidden, mixer.dwconv.weight, padding=1, groups=8), mixer.pwconv2.weight)
    torch.testing.assert_close(mixer(x), expected)


def test_channels_do_not_meet() -> None:
    mixer = MIXERS.build("dwconv(kernel=5, bias=False)", 3)
    x = torch.zeros(1, 3, 5, 5)
    x[0, 1, 2, 2] = 1
    y = mixer(x)
    assert y[0, 0].abs().sum() == 0 and y[0, 2].abs().sum() == 0
    torch.testing.assert_close(y[0, 1], mixer.conv.weight[1, 0].flip(0, 1))


def test_the_mixer_is_the_layer() -> None:
    mixer = MIXERS.build("cycle_fc(kernel=5, axis='height')", 6)
    assert isinstance(mixer, CycleFC) and (mixer.staircase, mixer.axis) == (5, "height")
    x = torch.zeros(1, 6, 5, 1)
    x[0, 1, 3] = 1  # channel 1 is read one position below
    assert mixer(x)[0, :, 2, 0].abs().sum() > 0 and mixer(x)[0, :, 3, 0].abs().sum() == 0


@pytest.mark.parametrize("kernel", [3, 5])
def test_three_branches_weighted_per_channel(kernel: int) -> None:
    mixer = MIXERS.build(f"cycle_mlp(kernel={kernel}, qkv_bias=True)", 8).double()
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    h, w, c = mixer.sfc_h(x), mixer.sfc_w(x), mixer.mlp_c(x)
    # (B, 3C), a channel's three together
    logits = mixer.reweight((h + w + c).mean((2, 3), keepdim=True)).flatten(1)
    weights = logits.reshape(2, 8, 3).softmax(-1)[..., None, None]
    expected = mixer.proj(weights[:, :, 0] * h + weights[:, :, 1] * w + weights[:, :, 2] * c)
    torch.testing.assert_close(mixer(x), expected)


def test_the_published_names_are_swapped() -> None:
    mixer = MIXERS.build("cycle_mlp", 8)
    assert (mixer.sfc_h.axis, mixer.sfc_w.axis) == ("width", "height")


def test_tokens_stay() -> None:
    x = torch.randn(1, 4, 2, 2)
    assert MIXERS.build("identity", 4)(x) is x


DIM = 8
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


WRONG: tuple[object, ...] = (-1, 0, 1.5, 1e308, 10**23, True, None, "x", [], {})


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_options_are_refused_in_a_line_or_work(mixer: str) -> None:
    case = MixerCase(mixer)
    context = {"dim", "grid", "grid_mode"}
    for name, value in product(inspect.signature(MIXERS[mixer]).parameters.keys() - context, WRONG):
        try:
            built = replace(case, mixer=f"{mixer}({name}={value!r})").build().eval()
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1 and name in str(error)
        else:
            assert built(case.input()).isfinite().all(), f"{name}={value!r}"
