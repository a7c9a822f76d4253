from collections.abc import Callable

import pytest
import torch
from metaformer.ops.cycle_mix import cycle_mix
from metaformer.ops.norm_mlp import norm_mlp
from metaformer.ops.pointwise_act import pointwise_act
from metaformer.ops.pointwise_residual import pointwise_residual
from metaformer.ops.pool_residual import pool_residual
from torch import Tensor


def network(x: Tensor, w: Tensor, gain: Tensor) -> Tensor:
    """All operations, one after the other."""
    x = pool_residual(x, gain, 3, 1e-5)
    x = norm_mlp(x, w, None, w.mT, None, norm="group_norm", gamma=gain)
    x = pointwise_residual(pointwise_act(x, w, act="relu"), w.mT, None, x)
    square = w[: x.shape[1]]
    return cycle_mix(x, square, square, square, gain.expand(x.shape[0], 3, -1), 3)


@pytest.fixture
def tensors(device: str) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 8, 5, 4), (12, 8), (8,)]
    return [(torch.randn(s, device=device) / 2).requires_grad_() for s in shapes]


def gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    result = function(*tensors)
    return [result.detach(), *torch.autograd.grad(result.float().square().mean(), tensors)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(tensors: list[Tensor], device: str, dynamic: bool) -> None:
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(
        gradients(compiled, tensors), gradients(network, tensors), rtol=1e-3, atol=1e-4
    )


def test_autocast_chooses_the_type(tensors: list[Tensor], device: str) -> None:
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    with torch.autocast(device, dtype=dtype):
        found = gradients(network, tensors)
    assert found[0].dtype == dtype
    assert [gradient.dtype for gradient in found[1:]] == [torch.float32] * 3
    for got, wanted in zip(found, gradients(network, tensors), strict=True):
        assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_channels_last_comes_out(tensors: list[Tensor]) -> None:
    assert network(*tensors).is_contiguous(memory_format=torch.channels_last)


def test_export_keeps_the_operations(tensors: list[Tensor]) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, gain: Tensor) -> Tensor:
            return network(x, w, gain)

    inputs = tuple(tensor.detach() for tensor in tensors)
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(Network(), inputs, dynamic_shapes=(free, None, None))
    assert "metaformer.norm_mlp" in program.graph_module.code
    larger = torch.randn(3, 8, 7, 6, device=inputs[0].device)
    torch.testing.assert_close(program.module()(larger, *inputs[1:]), network(larger, *inputs[1:]))


if torch.cuda.is_available():

    def test_cuda_graphs(tensors: list[Tensor]) -> None:
        """Nothing waits for the device or looks at data."""
        inputs = [tensor.detach() for tensor in tensors]
        wanted = network(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = network(*inputs)
        inputs[0].copy_(torch.randn_like(inputs[0]))
        graph.replay()
        torch.testing.assert_close(result, network(*inputs))
        assert not torch.equal(result, wanted)

    def test_maps_beyond_two_billion_elements() -> None:
        x = torch.randn(42, 64, 1024, 800, device="cuda", dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.ones(64, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16) / 8
        for operation in (
            lambda x: pool_residual(x, weight, 3, 1e-5),
            lambda x: norm_mlp(x, w, None, w, None, norm="group_norm"),
            lambda x: cycle_mix(x, w, w, w, weight.expand(len(x), 3, -1), 3),
        ):
            torch.testing.assert_close(operation(x)[-1:], operation(x[-1:]), rtol=2e-2, atol=2e-2)
