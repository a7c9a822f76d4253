"""Folding of layers and blocks."""

import copy
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaformer.backbones.block import Block, build_block
from metaformer.backbones.config import MetaFormerConfig
from metaformer.deploy.folded import block as folded_block
from metaformer.deploy.folded.block import fold_block
from metaformer.deploy.folded.conv import (
    FoldedConv,
    FoldedDepthwise,
    FoldedPatchConv,
    can_fold,
    can_fold_norm,
    fold_conv,
)
from metaformer.deploy.folded.linear import ACTIVATIONS, PackedLinear, fold_linear
from metaformer.layers.act import ACTS
from metaformer.layers.norm import NORMS
from metaformer.mixers import MIXERS
from metaformer.models.segmentation.layers import ConvNorm


@pytest.mark.parametrize("act", list(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_activation(act: str, bias: bool) -> None:
    x, weight, offset = torch.randn(2, 3, 5, 7), torch.randn(4, 7), torch.randn(4) if bias else None
    layer = PackedLinear(weight, offset)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, act), ACTIVATIONS[act](F.linear(x, weight, offset)))
    x.requires_grad_()
    layer(x, act).sum().backward()
    assert x.grad is not None


def test_residual() -> None:
    x, residual, layer = (
        torch.randn(2, 3, 7),
        torch.randn(2, 3, 4),
        PackedLinear(torch.randn(4, 7), torch.randn(4)),
    )
    with torch.inference_mode():
        y = layer(x, residual=residual)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias) + residual)


def test_the_packed_weight_follows_the_weight() -> None:
    x, layer, other = torch.randn(2, 3, 7), PackedLinear(torch.randn(4, 7)), PackedLinear(torch.randn(4, 7))
    with torch.inference_mode():
        layer(x)
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(x), F.linear(x, other.weight))
        torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
        assert layer.double()(x.double()).dtype == torch.float64


def test_folded_constants() -> None:
    x, weight, bias = torch.randn(9, 7), torch.randn(4, 7), torch.randn(4)
    gain, shift, scale = torch.randn(7), torch.randn(7), torch.randn(4)
    layer = fold_linear(weight[:, :, None, None], bias, gain=gain, shift=shift, scale=scale)
    expected = scale * F.linear(gain * x + shift, weight, bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer = fold_linear(weight, None, gain=gain, scale=scale)
    torch.testing.assert_close(layer(x), scale * F.linear(gain * x, weight), rtol=1e-5, atol=1e-5)


CONVS = {
    "strided": nn.Conv2d(3, 8, 7, 4, 2),
    "depthwise": nn.Conv2d(8, 8, 7, 1, 3, groups=8, bias=False),
    "wide depthwise": nn.Conv2d(16, 16, 7, 1, 3, groups=16),
    "dilated": nn.Conv2d(4, 6, 3, 1, (2, 1), (2, 1)),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_any_sequence_of_shapes(name: str, dtype: torch.dtype, tolerance: float) -> None:
    conv = copy.deepcopy(CONVS[name])
    folded = fold_conv(conv).to(dtype)
    conv = copy.deepcopy(conv).double()
    with torch.inference_mode():
        for size in (16, 16, 16, 20, 16, 20, 20, 0):
            batch = 2 if size else 0
            x = torch.randn(batch, conv.in_channels, size or 16, size or 16).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(folded(x).double(), conv(x.double()), rtol=tolerance, atol=tolerance)


def test_packed_weights_are_cached_by_shape_and_follow_the_weight() -> None:
    folded = FoldedConv(nn.Conv2d(3, 4, 3)).requires_grad_(False)
    images = [torch.randn(1, 3, size, size) for size in (8, 8, 9, 9)]
    for x in images:
        folded(x)
    assert list(folded._cache) == [images[0].shape, images[-1].shape]
    folded.load_state_dict({"weight": torch.ones(4, 3, 3, 3), "bias": torch.zeros(4)})
    torch.testing.assert_close(folded(images[-1])[0, 0, 0, 0], images[-1][0, :, :3, :3].sum())
    assert copy.deepcopy(folded)._cache == {}


def test_star_relu() -> None:
    x = torch.randn(2, 16, 9, 5).contiguous(memory_format=torch.channels_last)
    for conv in (nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.Conv2d(16, 4, 3)):
        with torch.inference_mode():
            expected = conv(0.8 * x.relu().square() - 0.4)
            torch.testing.assert_close(fold_conv(conv)(x, (0.8, -0.4)), expected, rtol=1e-4, atol=1e-5)


def test_depthwise_convolutions_that_keep_the_size() -> None:
    assert isinstance(fold_conv(nn.Conv2d(16, 16, 7, padding=3, groups=16)), FoldedDepthwise)
    for other in (
        nn.Conv2d(16, 16, 7, padding=2, groups=16),
        nn.Conv2d(16, 16, 7, 2, padding=3, groups=16),
        nn.Conv2d(16, 32, 7, padding=3, groups=16),
        nn.Conv2d(16, 16, 7, padding=6, dilation=2, groups=16),
        nn.Conv2d(16, 16, (7, 5), padding=(3, 2), groups=16),
        nn.Conv2d(16, 16, 7, padding=3, groups=8),
    ):
        assert isinstance(fold_conv(other), FoldedConv)


def test_which_convolutions_are_folded() -> None:
    assert can_fold(nn.Conv2d(3, 4, 3, padding=1)) and not can_fold(nn.ConvTranspose2d(3, 4, 3))
    assert not can_fold(nn.Conv2d(3, 4, 3, padding="same"))
    assert not can_fold(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))


DIM, GRID = 12, (7, 6)
KINDS = pytest.mark.parametrize(
    ("dtype", "dim"),
    [(torch.float32, 64), (torch.float32, DIM), (torch.float64, DIM)],
    ids=["cpp", "onednn", "plain"],
)


class Example(NamedTuple):
    block: Block
    dim: int


def example(dim: int = DIM, **changes: object) -> Example:
    """A block of random parameters and statistics: no weight is one, no bias zero."""
    fields = {
        "depths": (1,),
        "dims": (dim,),
        "downsamples": (),
        "pos_embed": (False,),
        "mlp_ratios": (3,),
        "mixers": ("pooling",),
        "layer_scale": (None,),
        "res_scale": (None,),
        "grid_mode": "interpolate",
        **changes,
    }
    torch.manual_seed(0)
    block = build_block(MetaFormerConfig(**fields), 0, fields["mixers"][0], 0.3)  # type: ignore[arg-type,index]
    for value in (*block.parameters(), *block.buffers()):
        if value.is_floating_point() and value.requires_grad:
            nn.init.normal_(value.data, std=0.5)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return Example(block.eval(), dim)


def check(of: Example, dtype: torch.dtype, batch: int = 2, size: tuple[int, int] = GRID) -> None:
    block = of.block.to(dtype)
    x = torch.randn(batch, of.dim, *size, dtype=dtype).to(memory_format=torch.channels_last)
    before = x.clone()
    with torch.inference_mode():
        expected = block(x)
        folded = fold_block(copy.deepcopy(block)).eval()
        results = [folded(x) for _ in range(3)]  # weights are packed when a shape repeats
    assert torch.equal(x, before)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    largest = expected.abs().max().item() if expected.numel() else 0.0
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=tolerance * max(1.0, largest))


@KINDS
@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("mixer", list(MIXERS))
def test_every_mixer_behind_every_norm(mixer: str, norm: str, dtype: torch.dtype, dim: int) -> None:
    check(example(dim, mixers=(mixer,), norm=norm), dtype)


@KINDS
@pytest.mark.parametrize("act", list(ACTS))
def test_every_activation(act: str, dtype: torch.dtype, dim: int) -> None:
    check(example(dim, act=act), dtype)
    check(example(dim, act=act, mlp_bias=False), dtype)
    check(example(dim, mixers=(f"sepconv(act='{act}')",)), dtype)


@KINDS
@pytest.mark.parametrize("mixer", list(MIXERS))
@pytest.mark.parametrize(
    "changes",
    [
        {"layer_scale": (0.5,)},
        {"res_scale": (0.5,)},
        {"skip_lam": 4.0},
        {"layer_scale": (0.5,), "res_scale": (0.5,), "skip_lam": 2.0},
        {"residual": False},
        {"residual": False, "layer_scale": (0.5,), "skip_lam": 2.0},
        {"mlp_ratios": (0,)},
    ],
    ids=str,
)
def test_every_scale_and_residual(
    mixer: str, changes: dict[str, object], dtype: torch.dtype, dim: int
) -> None:
    check(example(dim, mixers=(mixer,), **changes), dtype)


@KINDS
@pytest.mark.parametrize("mixer", [*MIXERS, "dwconv(kernel=7)"])
@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer_norm", "layer_scale": (0.5,)},
        {"norm": "batch_norm", "res_scale": (0.5,), "skip_lam": 2.0},
        {"norm": "group_norm", "residual": False, "act": "silu"},
    ],
    ids=str,
)
def test_metanext_blocks(mixer: str, changes: dict[str, object], dtype: torch.dtype, dim: int) -> None:
    check(example(dim, block="metanext", mixers=(mixer,), **changes), dtype)


@KINDS
@pytest.mark.parametrize(
    "options", ["", "(kernel=3, bias=False)", "(expansion=3.0, conv_ratio=1.5, act='silu')"]
)
def test_gated_blocks(options: str, dtype: torch.dtype, dim: int) -> None:
    mixer = (f"gated_dwconv{options}",)
    check(example(dim, mixers=mixer, norm="layer_norm", mlp_ratios=(0,), layer_scale=(0.5,)), dtype)
    check(example(dim, mixers=mixer, norm="layer_norm", res_scale=(0.5,)), dtype)


@pytest.mark.parametrize("options", ["qkv_bias=True", "kernel=5", "kernel=1"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 11)])
def test_cycle_mlp_at_small_and_large_sizes(options: str, size: tuple[int, int]) -> None:
    for dim in (DIM, 64):
        check(example(dim, mixers=(f"cycle_mlp({options})",), norm="layer_norm"), torch.float32, 3, size)
        check(example(dim, mixers=(f"cycle_mlp({options})",), layer_scale=(0.5,)), torch.float32, 3, size)


@pytest.mark.parametrize("mixer", list(MIXERS))
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_batches_in_chunks(mixer: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded_block, "CHUNK_ELEMENTS", 2 * GRID[0] * GRID[1] * 3 * DIM)
    check(example(mixers=(mixer,)), torch.float32, batch)


class Foreign(nn.Module):
    """A mixer from outside this library."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1) * self.weight


def test_a_mixer_from_outside() -> None:
    check(example(mixers=(Foreign,), layer_scale=(0.5,)), torch.float32)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = [
    changes
    for mixer, norm, act in (
        ("pooling", "group_norm", "gelu"),
        ("sepconv", "layer_norm", "star_relu"),
        ("cycle_mlp", "layer_norm", "squared_relu"),
    )
    for changes in (
        {"mixers": (mixer,), "norm": norm, "act": act, "layer_scale": (0.5,)},
        {"mixers": (mixer,), "norm": norm, "act": act, "res_scale": (0.5,)},
        {"mixers": (mixer,), "norm": norm, "act": act, "residual": False},
        {"block": "metanext", "mixers": ("dwconv",), "norm": norm, "act": act, "res_scale": (0.5,)},
    )
]


@pytest.mark.parametrize("changes", TRITON if INTERPRETED else TRITON[:0], ids=str)
def test_interpreted_triton_kernels(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The registered operation is what runs: without it the block fails."""
    check(example(**changes), torch.float32, 1, (3, 4))
    monkeypatch.setattr(torch.ops, "metaformer", None)
    with pytest.raises(AttributeError):
        check(example(**changes), torch.float32, 1, (3, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets on a machine without CUDA")
def test_triton_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "METAFORMER_OPS": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", __file__]
    command += ["-k", test_interpreted_triton_kernels.__name__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and f"{len(TRITON)} passed" in done.stdout, done.stdout[-8000:]


@torch.inference_mode()
def test_a_strided_convolution_refuses_what_does_not_fit() -> None:
    folded = fold_conv(nn.Conv2d(3, 16, 7, 4, 2)).requires_grad_(False)
    assert isinstance(folded, FoldedPatchConv)
    for shape in ((1, 3, 1, 64), (1, 4, 64, 64), (2, 3, 64, 2)):
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        with pytest.raises(RuntimeError):
            folded(x)
    elsewhere = folded.to("meta")
    assert not elsewhere._runs_in_cpp(torch.zeros(1, 64, 64, 3)), "a weight without memory"


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm2d(8, affine=False)],
    ids=["statistics of the batch", "no constants"],
)
def test_batch_norms_that_cannot_be_folded(norm: nn.Module) -> None:
    part = ConvNorm(8, 8, 3)
    part.norm = norm
    assert not can_fold_norm(part)
    part = ConvNorm(8, 8, 3)
    assert can_fold_norm(part)
    part.conv = nn.Conv2d(8, 8, 3, padding=1)
    assert not can_fold_norm(part), "a bias before the norm"
