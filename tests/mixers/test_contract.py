"""What every token mixer promises; registered mixers are covered unasked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metaformer.backbones.block import build_mixer
from metaformer.errors import GridError
from metaformer.mixers import MIXERS

DIM, GRID = 12, (6, 5)
every_mixer = pytest.mark.parametrize("name", list(MIXERS))


def made(name: str, grid_mode: str = "strict") -> nn.Module:
    torch.manual_seed(0)
    return build_mixer(name, DIM, GRID, grid_mode)


def image(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, DIM, *(size or GRID), dtype=dtype).to(memory_format=torch.channels_last)


@every_mixer
def test_shape_and_layout(name: str) -> None:
    x = image()
    y = made(name)(x)
    assert y.shape == x.shape
    assert y.stride() == x.stride() or MIXERS.fixed_grid(name)


@every_mixer
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 17), st.integers(1, 17))
def test_any_size(name: str, height: int, width: int) -> None:
    x = image(height, width)
    assert made(name, "interpolate")(x).shape == x.shape


@every_mixer
def test_a_fixed_grid_says_so(name: str) -> None:
    x = image(4, 4)
    if MIXERS.fixed_grid(name):
        with pytest.raises(GridError, match="6×5"):
            made(name)(x)
    else:
        assert made(name)(x).shape == x.shape


@every_mixer
def test_input_is_left_alone(name: str) -> None:
    x = image()
    before = x.clone()
    made(name)(x)
    assert torch.equal(x, before)


@every_mixer
def test_gradients_reach_input_and_weights(name: str) -> None:
    mixer, x = made(name).double(), image(dtype=torch.float64).requires_grad_()
    mixer(x).square().sum().backward()
    for tensor in (x, *(p for p in mixer.parameters() if p.requires_grad)):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    assert x.grad is not None and x.grad.abs().sum() > 0


@every_mixer
def test_samples_do_not_meet(name: str) -> None:
    mixer, x = made(name).eval(), image()
    torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]), rtol=1e-4, atol=1e-5)


@every_mixer
def test_bf16_follows_float32(name: str) -> None:
    mixer, x = made(name), image()
    expected = mixer(x)
    got = mixer.bfloat16()(x.bfloat16()).float()
    assert (got - expected).abs().max() <= 0.05 * expected.abs().max()


@every_mixer
def test_contiguous_input_gives_the_same(name: str) -> None:
    mixer, x = made(name), image()
    torch.testing.assert_close(mixer(x.contiguous()), mixer(x), rtol=1e-4, atol=1e-5)


@every_mixer
def test_traces_into_one_graph_with_its_backward(name: str) -> None:
    mixer, x = made(name), image().requires_grad_()
    torch.compiler.reset()
    y = torch.compile(mixer, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, mixer(x), rtol=1e-4, atol=1e-5)
    y.sum().backward()


@every_mixer
def test_exports(name: str) -> None:
    mixer, x = made(name).eval(), image()
    exported = torch.export.export(mixer, (x,)).module()
    torch.testing.assert_close(exported(x), mixer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_mixer
def test_compiles(name: str) -> None:
    mixer, x = made(name), image()
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(mixer)(x), mixer(x), rtol=1e-3, atol=1e-4)
