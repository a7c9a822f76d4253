import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import metaformer
from metaformer.deploy.folded.stage import ReplayableStage
from metaformer.ops import cpp

pytestmark = pytest.mark.skipif(
    not cpp.has_linear(torch.float32), reason="the C++ products do not run on this machine"
)


def optimized(
    name: str = "poolformer_s12", dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = metaformer.create_model(name, depths=(2, 1, 1, 1), num_classes=7, **options).eval()
    return model, metaformer.optimize(model, dtype=dtype)


def chains(network: nn.Module) -> list[ReplayableStage]:
    return [module for module in network.modules() if isinstance(module, ReplayableStage)]


def planned(network: nn.Module) -> list[bool]:
    return [any(plan is not None for plan in chain._cache.values()) for chain in chains(network)]


def images(size: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["poolformer_s12", "convformer_s18", "caformer_s18", "cyclemlp_b1"])
def test_families_run_on_kernels_alone(name: str) -> None:
    model, network = optimized(name)
    for size in (64, 64, 64, 96, 64, 64):
        x = images(size)
        torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-4)
    assert planned(network) == [True] * 4


@torch.inference_mode()
@pytest.mark.skipif(not cpp.has_linear(torch.bfloat16), reason="no products of bfloat16 on this machine")
@pytest.mark.parametrize("name", ["poolformer_s12", "convformer_s18", "caformer_s18", "cyclemlp_b1"])
def test_so_they_do_in_bfloat16(name: str) -> None:
    model, network = optimized(name, torch.bfloat16)
    x = images().bfloat16()
    found, wanted = [network(x).float() for _ in range(4)], model(x.float())
    for logits in found:
        assert (logits - wanted).abs().max() <= 0.05 * wanted.abs().max()
    assert planned(network) == [True] * 4


@torch.inference_mode()
def test_another_type_of_maps_is_not_misread() -> None:
    _, network = optimized()
    x = images().contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        network(x)
    with pytest.raises(RuntimeError, match=r"primitive|type"):
        network(x.bfloat16())


@torch.inference_mode()
def test_new_weights_are_seen() -> None:
    _, network = optimized()
    torch.manual_seed(1)
    other = metaformer.optimize(
        metaformer.create_model("poolformer_s12", depths=(2, 1, 1, 1), num_classes=7).eval()
    )
    x = images()
    for _ in range(3):
        network(x)
    network.load_state_dict(other.state_dict())
    for _ in range(3):
        torch.testing.assert_close(network(x), other(x), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_hooks_on_blocks_are_called() -> None:
    _, network = optimized()
    x = images()
    for _ in range(3):
        network(x)
    seen: list[torch.Size] = []
    chains(network)[0][1].register_forward_hook(lambda module, maps, result: seen.append(result.shape))
    network(x)
    assert seen == [torch.Size((1, 64, 16, 16))]


@torch.inference_mode()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_on_their_own(copied: object) -> None:
    assert callable(copied)
    _, network = optimized()
    x = images()
    wanted = [network(x) for _ in range(3)][-1]
    other = copied(network)
    numbers = {chain.number for net in (network, other) for chain in chains(net)}
    assert len(numbers) == 8 and None not in numbers
    del network
    for _ in range(3):
        torch.testing.assert_close(other(x), wanted, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_chain_is_one_operation_of_a_graph() -> None:
    _, network = optimized()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    x = images()
    wanted = network(x)
    torch.testing.assert_close(torch.compile(network, backend=backend, fullgraph=True)(x), wanted)
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("metaformer.replay_stage" in name for name in called) == 4
    assert not any("gelu" in name for name in called)


def test_the_operation_is_well_registered() -> None:
    _, network = optimized()
    chain = chains(network)[1]
    assert chain.number is not None
    with torch.inference_mode():
        x = torch.randn(1, 128, 6, 5).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(
        torch.ops.metaformer.replay_stage.default,
        (x.clone(), chain.number),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_mixers_from_outside_and_gradients_go_block_by_block() -> None:
    model, network = optimized(mixers=("pooling", "identity", "dwconv", "pooling"))
    assert [chain.number is None for chain in chains(network)] == [False, True, True, False]
    x = images().requires_grad_()
    torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)
