"""Norms, activations, MLPs and the other small layers."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from metaformer.errors import ConfigError, GridError
from metaformer.layers.act import ACTS, SquaredReLU, StarReLU
from metaformer.layers.cycle_fc import CycleFC
from metaformer.layers.drop_path import DropPath
from metaformer.layers.embed import Downsample, PositionEmbedding, Stem
from metaformer.layers.grid import FixedGrid
from metaformer.layers.mlp import Mlp
from metaformer.layers.norm import NORMS
from metaformer.layers.pointwise import Pointwise, _Matrix
from metaformer.layers.scale import Scale
from metaformer.ops.cycle import staircase


@pytest.mark.parametrize("name", list(ACTS))
def test_every_activation_is_elementwise(name: str) -> None:
    act = ACTS.build(name)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(act(x)[:, 1:2], act(x[:, 1:2]))


def test_squared_and_star_relu() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert SquaredReLU()(x).tolist() == [0, 0, 9]
    star = StarReLU(scale=2.0, bias=-1.0)
    assert star(x).tolist() == [-1, -1, 17]
    star(x).sum().backward()
    assert star.scale.grad is not None and star.scale.grad.item() == 9
    assert star.bias.grad is not None and star.bias.grad.item() == 3


def test_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 2, 1, 1))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert torch.equal(y[:, 0], y[:, 1])
    assert abs(y.mean().item() - 1) < 0.05


def test_nothing_happens_in_evaluation() -> None:
    x = torch.ones(8, 1, 1, 1)
    assert DropPath(0.9).eval()(x) is x


def test_stem_norm_comes_after_and_downsample_norm_before() -> None:
    stem = Stem(3, 8, 7, 4, 2, norm="layer_norm")
    assert stem(torch.randn(1, 3, 32, 32)).mean(1).abs().max() < 1e-5
    down = Downsample(8, 4, 3, 2, 1, norm="layer_norm")
    x = torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(down(x), down(3 * x), rtol=1e-3, atol=1e-4)
    assert down(x).shape == (1, 4, 4, 4)


def test_position_embedding_starts_at_zero_and_belongs_to_a_grid() -> None:
    x = torch.randn(1, 4, 3, 3)
    strict = PositionEmbedding(4, (3, 3))
    assert torch.equal(strict(x), x)
    with pytest.raises(GridError, match="3×3 positions and got 4×4"):
        strict(torch.randn(1, 4, 4, 4))
    free = PositionEmbedding(4, (3, 3), "interpolate")
    torch.nn.init.ones_(free.weight)
    torch.testing.assert_close(free(torch.zeros(1, 4, 5, 6)), torch.ones(1, 4, 5, 6))


class Reverse(FixedGrid):
    """Swap first and last position."""

    def mix(self, tokens: Tensor) -> Tensor:
        return tokens.flip(-1)


def test_mixes_on_its_grid_only_unless_asked() -> None:
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert Reverse((2, 2))(x).flatten().tolist() == [3, 2, 1, 0]
    with pytest.raises(GridError, match="Reverse mixer is made for a grid of 2×2 positions and got 4×4"):
        Reverse((2, 2))(torch.zeros(1, 1, 4, 4))


def test_interpolation_mixes_at_the_grid_and_returns_at_the_input_size() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., :2, :2] = 1
    y = Reverse((2, 2), "interpolate")(x)
    assert y.shape == x.shape
    assert y[0, 0, 3, 3] > 0.9 and y[0, 0, 0, 0] < 0.1


def test_mlp_is_two_products_per_position() -> None:
    mlp = Mlp(4, 8, 6, act="relu")
    x = torch.randn(2, 4, 3, 3)
    tokens = x.permute(0, 2, 3, 1)
    hidden = (tokens @ mlp.fc1.weight[:, :, 0, 0].T + mlp.fc1.bias).relu()
    expected = hidden @ mlp.fc2.weight[:, :, 0, 0].T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x).permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_factor_per_channel_is_in_the_weights(bias: bool) -> None:
    mlp = Mlp(4, 8, 6, bias=bias).double()
    x, factor = torch.randn(2, 4, 3, 3).double(), torch.randn(6).double()
    torch.testing.assert_close(mlp(x, factor), mlp(x) * factor[:, None, None])


def test_dropout_and_bias_options() -> None:
    mlp = Mlp(4, 8, bias=False, dropout=0.5).train()
    assert mlp.fc1.bias is None and mlp.fc2.bias is None
    x = torch.randn(1, 4, 2, 2)
    assert not torch.equal(mlp(x), mlp(x))
    assert torch.equal(mlp.eval()(x), mlp(x))


@pytest.mark.parametrize("name", list(NORMS))
def test_every_norm_keeps_shape_and_layout(name: str) -> None:
    x = torch.randn(2, 6, 5, 3).to(memory_format=torch.channels_last)
    y = NORMS.build(name, 6, eps=1e-5)(x)
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "axes"), [("group_norm", (1, 2, 3)), ("layer_norm", (1,)), ("batch_norm", (0, 2, 3))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_their_definitions(name: str, axes: tuple[int, ...], bias: bool) -> None:
    norm = NORMS.build(f"{name}(bias={bias})", 6, eps=1e-3).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    assert {key for key, _ in norm.named_parameters()} == ({"weight", "bias"} if bias else {"weight"})
    x = torch.randn(4, 6, 5, 3, dtype=torch.float64) * 3 + 1
    expected = (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, unbiased=False) + 1e-3).sqrt()
    expected = expected * norm.weight[:, None, None] + (norm.bias[:, None, None] if bias else 0)
    torch.testing.assert_close(norm(x), expected)


def test_none_is_nothing() -> None:
    x = torch.randn(1, 4, 2, 2)
    assert NORMS.build("none", 4, eps=1e-5)(x) is x


def test_pointwise_maps_channels_of_each_position() -> None:
    layer = Pointwise(3, 5)
    assert layer.weight.shape == (5, 3, 1, 1)
    x = torch.randn(2, 3, 4, 4)
    expected = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x)
    torch.testing.assert_close(layer(x), expected)  # the bias starts at zero


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_matrix_has_a_gradient_laid_out_as_the_weight(layout: torch.memory_format) -> None:
    layer = Pointwise(3, 5).double().to(memory_format=layout)
    matrix = layer.matrix()
    assert torch.equal(matrix, layer.weight[:, :, 0, 0])
    (matrix.cos() * torch.arange(15.0).view(5, 3)).sum().backward()
    grad = layer.weight.grad
    assert grad is not None and grad.stride() == layer.weight.stride()
    torch.testing.assert_close(
        grad[:, :, 0, 0], -matrix.sin() * torch.arange(15.0, dtype=torch.float64).view(5, 3)
    )
    assert torch.autograd.gradgradcheck(lambda weight: _Matrix.apply(weight).cos(), layer.weight)


def test_one_number_per_channel_for_every_sample_and_position() -> None:
    scale = Scale(3, 0.5)
    assert scale.scale.tolist() == [0.5] * 3
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.ones(2, 3, 4, 5)
    assert torch.equal(scale(x), torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1).expand(2, 3, 4, 5))


def deformable(layer: CycleFC, x: Tensor) -> Tensor:
    """The original's form: a deformable 1×1 convolution with fixed whole-number offsets."""
    batch, dim, height, width = x.shape
    stairs = staircase(layer.staircase)
    offset = x.new_zeros(1, 2 * dim, 1, 1)
    first = 0 if layer.axis == "height" else 1  # torchvision: (dy, dx) per channel
    offset[0, first::2, 0, 0] = x.new_tensor([stairs[c % len(stairs)] for c in range(dim)])
    return deform_conv2d(x, offset.expand(batch, -1, height, width), layer.weight, layer.bias)


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 5)])
def test_equals_the_deformable_convolution(kernel: int, axis: str, size: tuple[int, int]) -> None:
    layer = CycleFC(10, kernel, axis).double()  # type: ignore[arg-type]
    x = torch.randn(2, 10, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), deformable(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("options", "word"), [({"kernel": 4}, "odd"), ({"axis": "depth"}, "depth")])
def test_bad_options(options: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        CycleFC(8, **options)  # type: ignore[arg-type]
