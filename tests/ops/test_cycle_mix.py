import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.layers.cycle_fc import CycleFC
from metaformer.layers.pointwise import Pointwise
from metaformer.ops.cycle_mix import cycle_mean, cycle_mix

sides = st.integers(1, 9)
kernels = st.sampled_from([1, 3, 5, 7])


def products(dim: int, kernel: int) -> list[Pointwise]:
    parts = [
        CycleFC(dim, kernel, "width", bias=False),
        CycleFC(dim, kernel, "height", bias=False),
        Pointwise(dim, dim, bias=False),
    ]
    for part in parts:
        torch.nn.init.normal_(part.weight)
    return [part.double() for part in parts]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 9), sides, sides, kernels)
def test_is_the_weighted_sum_of_the_products(
    batch: int, dim: int, height: int, width: int, kernel: int
) -> None:
    torch.manual_seed(0)
    parts = products(dim, kernel)
    weights = [part.weight for part in parts]
    x = torch.randn(batch, dim, height, width, dtype=torch.float64, requires_grad=True)
    share = torch.randn(batch, 3, dim, dtype=torch.float64, requires_grad=True)
    got = cycle_mix(x, *weights, share, kernel)
    wanted = sum((part(x) * share[:, i, :, None, None] for i, part in enumerate(parts)), torch.zeros(()))
    torch.testing.assert_close(got, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), (x, share, *weights)),
        torch.autograd.grad(wanted.square().sum(), (x, share, *weights)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), sides, sides, kernels)
def test_mean_without_the_products(batch: int, dim: int, height: int, width: int, kernel: int) -> None:
    torch.manual_seed(0)
    parts = products(dim, kernel)
    x = torch.randn(batch, dim, height, width, dtype=torch.float64, requires_grad=True)
    got = cycle_mean(x, *(part.weight for part in parts), kernel)
    wanted = sum((part(x).mean((2, 3)) for part in parts), torch.zeros(()))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), x), torch.autograd.grad(wanted.square().sum(), x)
    )


def test_compiles_whole() -> None:
    def mix(x: Tensor, *weights: Tensor) -> Tensor:
        mean = cycle_mean(x, *weights, 3)
        return cycle_mix(x, *weights, mean[:, None].expand(-1, 3, -1).softmax(1), 3)

    tensors = [torch.randn(1, 6, 5, 5), *(torch.randn(6, 6) for _ in range(3))]
    compiled = torch.compile(mix, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), mix(*tensors))
