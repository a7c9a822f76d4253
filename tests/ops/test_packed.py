import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.native import library
from metaformer.ops.packed import pack, usable

LANES, PANEL = library.lanes(), library.panel()
products = pytest.mark.skipif(
    not library.multiplies(torch.float32), reason="no C++ compiler, or a processor without AVX2"
)


def as_it_is_read(packed: Tensor, columns: int, depth: int) -> Tensor:
    """Find each number of a weight by what product.h says of panels."""
    together = 1 if packed.dtype == torch.float32 else 2
    weight, start = packed.new_empty(columns, depth), 0
    while start < columns:
        width = PANEL if start + PANEL <= columns else LANES
        panel = packed[start * depth : (start + width) * depth]
        for c in range(width):
            for k in range(depth):
                place = (k // together * width + c) * together + k % together
                weight[start + c, k] = panel[place]
        start += width
    return weight


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.sampled_from([2, 6, 8, 16]), st.booleans())
def test_each_number_lies_where_it_is_read(columns: int, depth: int, low: bool) -> None:
    columns *= LANES
    weight = torch.arange(columns * depth).view(columns, depth) % 251  # bfloat16 holds these
    weight = weight.to(torch.bfloat16 if low else torch.float32)
    packed = pack(weight, None)
    assert (packed.columns, packed.depth, packed.weight.dtype) == (columns, depth, weight.dtype)
    assert packed.weight.shape == (columns * depth,)
    assert torch.equal(as_it_is_read(packed.weight, columns, depth), weight)


def test_a_weight_may_have_gaps_in_memory() -> None:
    weight = torch.randn(16, 2 * LANES).t()
    assert torch.equal(pack(weight, None).weight, pack(weight.contiguous(), None).weight)


def test_the_bias_is_float32_and_zero_where_there_is_none() -> None:
    weight, bias = torch.randn(LANES, 2).bfloat16(), torch.randn(LANES).bfloat16()
    assert pack(weight, None).bias.tolist() == [0.0] * LANES
    assert pack(weight, bias).bias.dtype == torch.float32
    assert torch.equal(pack(weight, bias).bias, bias.float())


def test_no_gradient_is_kept() -> None:
    weight, bias = torch.randn(LANES, 2, requires_grad=True), torch.randn(LANES, requires_grad=True)
    packed = pack(weight, bias)
    assert not packed.weight.requires_grad and not packed.bias.requires_grad


@products
def test_runs_on_maps_of_the_weights_type_without_gaps() -> None:
    weight, x = torch.randn(2 * LANES, LANES), torch.randn(2, 3, LANES)
    assert usable(weight, x) and usable(weight, x, x + 1)
    assert usable(weight.bfloat16(), x.bfloat16()) == library.multiplies(torch.bfloat16)
    assert not usable(weight, x.bfloat16()) and not usable(weight.bfloat16(), x)
    assert not usable(weight.double(), x.double())
    assert not usable(weight, x.transpose(0, 1)) and not usable(weight, x, x.transpose(0, 1))
    assert not usable(weight, x[:0])


@products
def test_runs_without_gradients_only() -> None:
    weight, x = torch.randn(LANES, LANES), torch.randn(3, LANES, requires_grad=True)
    assert not usable(weight, x)
    with torch.no_grad():
        assert usable(weight, x)


@products
@pytest.mark.parametrize(("columns", "depth"), [(1, 0), (0, 1), (-1, 0), (0, LANES // 2)])
def test_runs_on_whole_registers_only(columns: int, depth: int) -> None:
    columns, depth = 2 * LANES + columns, 2 * LANES + depth
    assert not usable(torch.randn(columns, depth), torch.randn(3, depth))


@products
def test_not_where_plain_pytorch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(LANES, LANES), torch.randn(3, LANES)
    with torch.autocast("cpu", torch.bfloat16):
        assert not usable(weight, x)
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    assert not usable(weight, x)
