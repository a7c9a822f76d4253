"""Captured kernel calls, and the stages that replay them."""

import copy
import pickle
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaformer
from metaformer.deploy.folded.classifier import ReplayableClassifier
from metaformer.deploy.folded.linear import MAX_PLANS, WeightCache
from metaformer.deploy.folded.replay import CapturedGraph, ReplayableStage, capture
from metaformer.ops import cpp, onednn
from metaformer.ops.attention import attention
from metaformer.ops.norm import layer_norm

kernels = pytest.mark.skipif(cpp.load() is None, reason="no C++ kernels on this machine")
linear = pytest.mark.skipif(not cpp.has_linear(torch.float32), reason="no C++ linear layers on this machine")


def norms(x: Tensor, times: int = 5) -> Tensor:
    """(B, C, H, W) through some kernels, as blocks call them."""
    x = x.permute(0, 2, 3, 1)
    for _ in range(times):
        x = layer_norm(x, 0.5)
    return x.permute(0, 3, 1, 2)


def features(batch: int = 2, **options: torch.dtype) -> Tensor:
    return torch.randn(batch, 32, 5, 3, **options).contiguous(memory_format=torch.channels_last)


def captured(function: Callable[[Tensor], Tensor], x: Tensor) -> CapturedGraph:
    graph = capture(function, x)
    assert graph is not None
    return graph


@kernels
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [x for x in (torch.float32, torch.bfloat16) if onednn.has_dtype(x)])
def test_a_replay_computes_what_the_calls_did(dtype: torch.dtype) -> None:
    graph = captured(norms, features(dtype=dtype))
    assert len(graph.calls) == 5
    results = []
    for _ in range(3):
        x = features(dtype=dtype)
        results.append((graph(x), norms(x)))  # the next replay does not overwrite a result
    for result, expected in results:
        assert result.stride() == expected.stride() and torch.equal(result, expected)


@kernels
@torch.inference_mode()
def test_tensors_that_are_not_alive_at_once_share_memory() -> None:
    x = features()
    for times in (4, 12):
        graph = captured(lambda x, times=times: norms(x, times), x)
        assert sum({buffer.data_ptr(): buffer.nbytes for buffer in graph.owned}.values()) == 2 * x.nbytes


@kernels
@torch.inference_mode()
def test_a_slice_of_a_larger_tensor_is_read_in_place() -> None:
    graph, x = captured(norms, features(5)[1:3]), features(7)
    assert torch.equal(graph(x[3:5]), norms(x[3:5]))


@kernels
@torch.inference_mode()
def test_nothing_is_captured_where_pytorch_computes() -> None:
    qkv = torch.randn(2, 7, 3, 1, 20)  # heads of 20 channels have no kernel
    for function in (
        lambda x: norms(x) + 1,
        lambda x: norms(x * 2),
        lambda x: norms(x).relu_(),
        lambda x: x,
        lambda x: attention(qkv),
    ):
        assert capture(function, features()) is None


@kernels
@torch.inference_mode()
def test_weights_live_as_long_as_the_graph() -> None:
    def weighted(x: Tensor) -> Tensor:
        return layer_norm(x.permute(0, 2, 3, 1), 0.5, weights[0], weights[1]).permute(0, 3, 1, 2)

    weights = [torch.full((32,), 3.0), torch.full((32,), 4.0)]
    x = features()
    expected, graph = weighted(x), captured(weighted, x)
    weights.clear()
    _ = [torch.zeros(32) for _ in range(100)]  # would reuse freed memory
    assert torch.equal(graph(x), expected)


@kernels
@torch.inference_mode()
def test_threads_replay_one_after_the_other() -> None:
    graph = captured(norms, features())
    equal: list[bool] = []

    def replay() -> None:
        with torch.inference_mode():
            for _ in range(50):
                x = features()
                equal.append(torch.equal(graph(x), norms(x)))

    threads = [threading.Thread(target=replay) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(equal) == 150 and all(equal)


def optimized(
    name: str = "poolformer_s12", dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = metaformer.create_model(name, depths=(2, 1, 1, 1), num_classes=7, **options).eval()
    return model, metaformer.optimize(model, dtype=dtype)


def stages(network: nn.Module) -> list[ReplayableStage]:
    return [module for module in network.modules() if isinstance(module, ReplayableStage)]


def test_threads_share_an_optimized_network() -> None:
    network = optimized()[1]
    inputs = [images(size) for size in (32, 40, 48)]
    with torch.inference_mode():
        expected = [network(x) for x in inputs]
    errors: list[BaseException] = []

    def serve(seed: int) -> None:
        try:
            with torch.inference_mode():
                for i in random.Random(seed).choices(range(3), k=60):
                    torch.testing.assert_close(network(inputs[i]), expected[i], rtol=1e-4, atol=1e-5)
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors


def test_a_shape_may_leave_the_cache_while_another_thread_reads_it() -> None:
    class Dropping(dict[Any, Any]):
        """A cache that another thread empties after each look into it."""

        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

    cache = WeightCache()
    cache._cache = Dropping()
    values = [cache.get_repeated((2, 3), object) for _ in range(4)]
    assert values[0] is None and all(value is not None for value in values[1:])
    assert cache.get("key", lambda: 1) == cache.get("key", lambda: 2) == 1


def test_the_last_shapes_keep_their_values() -> None:
    cache = WeightCache()
    assert [cache.get_repeated(shape, object) for shape in range(MAX_PLANS)] == [None] * MAX_PLANS
    values = [cache.get_repeated(shape, object) for shape in range(MAX_PLANS)]
    assert None not in values
    assert [cache.get_repeated(shape, object) for shape in range(MAX_PLANS)] == values
    assert cache.get_repeated(MAX_PLANS, object) is None  # in the place of the one that came longest ago
    assert [cache.get_repeated(shape, object) for shape in range(1, MAX_PLANS)] == values[1:]
    assert cache.get_repeated(0, object) is None
    assert len(cache._cache) < MAX_PLANS


def graphs(network: nn.Module) -> list[CapturedGraph]:
    assert isinstance(network, ReplayableClassifier)
    return [value for value in network._cache.values() if isinstance(value, CapturedGraph)]


def images(size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", ["poolformer_s12", "convformer_s18", "caformer_s18", "cyclemlp_b1"])
def test_families_run_on_kernels_alone(name: str, dtype: torch.dtype, tolerance: float) -> None:
    if not cpp.has_linear(dtype):
        pytest.skip("no C++ linear layers of this type on this machine")
    model, network = optimized(name, dtype)
    for size in (64, 64, 64, 96, 64, 96):
        x = images(size).to(dtype)
        expected = model(x.float())
        assert (network(x).float() - expected).abs().max() <= tolerance * expected.abs().max()
    assert len(graphs(network)) == 2


@linear
@torch.inference_mode()
def test_images_of_another_type_are_refused() -> None:
    _, network = optimized()
    x = images().contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        network(x)
    with pytest.raises(RuntimeError, match=r"primitive|type"):
        network(x.bfloat16())


@linear
@torch.inference_mode()
def test_loaded_weights_replace_a_graph() -> None:
    (_, network), (model, _), x = optimized(), optimized(), images()
    nn.init.normal_(model.stages[0].blocks[0].mlp.fc1.weight)
    other = metaformer.optimize(model)
    for _ in range(3):
        network(x)
    network.load_state_dict(other.state_dict())
    for _ in range(3):
        torch.testing.assert_close(network(x), other(x), rtol=0, atol=1e-5)


@linear
@torch.inference_mode()
@pytest.mark.parametrize(
    "part", ["stem.conv", "stages.1.downsample.conv", "stages.1.blocks.0", "head.norm", "head.fc"]
)
def test_hooks_of_any_part_are_called(part: str) -> None:
    _, network = optimized()
    x, calls = images(), []
    for _ in range(3):
        network(x)
    handle = network.get_submodule(part).register_forward_hook(lambda *_: calls.append(part))
    network(x)
    assert calls == [part]
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: calls.append(type(module).__name__)
    )
    network(x)
    handle.remove()
    assert "FoldedMetaFormerBlock" in calls


@linear
def test_a_classifier_trained_on_an_optimized_network() -> None:
    """Evaluations between the epochs see the weights of their time, and losses have gradients."""
    model, network = optimized()
    network.reset_classifier(3)
    model.head.fc = network.head.fc
    x = images()
    optimizer = torch.optim.SGD(network.head.fc.parameters(), 0.1)
    for _ in range(3):
        for _ in range(3):
            with torch.inference_mode():
                torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-4)
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    network.head.fc.requires_grad_(False)
    for _ in range(3):
        with torch.inference_mode():
            torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            network.head.fc.weight += 1
    network.stages[0].blocks[0].requires_grad_()
    assert network(x).requires_grad


@linear
@torch.inference_mode()
def test_any_change_of_the_head_counts() -> None:
    model, network = optimized(norm="layer_norm")
    x = images()
    for change in (
        lambda net: setattr(net.head, "global_pool", "max"),
        lambda net: setattr(net.head, "global_pool", "avg"),
        lambda net: setattr(net.head, "norm", nn.Identity()),
        lambda net: setattr(net.head.fc, "weight", nn.Parameter(torch.ones(7, 512), requires_grad=False)),
    ):
        for _ in range(3):
            torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-4)
        change(model)
        change(network)
    torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-3)


@linear
@torch.inference_mode()
def test_a_replaced_block_replaces_a_graph() -> None:
    model, network = optimized()
    x = images()
    for _ in range(3):
        network(x)
    model.stages[2].blocks[0] = network.stages[2].blocks[0] = nn.Identity()
    for _ in range(3):
        torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-4)


@linear
@torch.inference_mode()
def test_changed_parts_replace_a_graph() -> None:
    (model, network), x = optimized(), images()
    for _ in range(3):
        network(x)
    nn.init.normal_(model.stages[1].blocks[0].mlp.fc1.weight)
    part = metaformer.optimize(model).stages[1].blocks[0].mlp.fc1
    network.stages[1].blocks[0].mlp.fc1.load_state_dict(part.state_dict())
    for _ in range(3):
        torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-4)
    model.head.fc, network.head.fc = [copy.deepcopy(nn.Linear(512, 3))] * 2
    for _ in range(3):
        torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-4)
    model.reset_classifier(0)
    network.reset_classifier(0)
    for _ in range(3):
        torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-4)
    model.prune_intermediate_layers([0, 1])
    network.prune_intermediate_layers([0, 1])
    for _ in range(3):
        torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-4)


@linear
@torch.inference_mode()
def test_hooks_of_blocks_are_called() -> None:
    _, network = optimized()
    x = images()
    for _ in range(3):
        network(x)
    shapes: list[tuple[int, ...]] = []
    for module in (network.stem, network.stages[1], stages(network)[0][1], network.head):
        module.register_forward_hook(lambda module, args, result: shapes.append(tuple(result.shape)))
    network(x)
    assert shapes == [(1, 64, 16, 16), (1, 64, 16, 16), (1, 128, 8, 8), (1, 7)]


@linear
@torch.inference_mode()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_independent(copied: Callable[[nn.Module], nn.Module]) -> None:
    _, network = optimized()
    x = images()
    expected = [network(x) for _ in range(3)][-1]
    other = copied(network)
    numbers = {stage.number for net in (network, other) for stage in stages(net)}
    assert len(numbers) == 8 and None not in numbers
    del network
    for _ in range(3):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-6)


@linear
@torch.inference_mode()
def test_a_stage_is_one_operation_of_a_compiled_graph() -> None:
    _, network = optimized()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    x = images()
    expected = network(x)
    torch.testing.assert_close(torch.compile(network, backend=backend, fullgraph=True)(x), expected)
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("metaformer.replay_stage" in name for name in called) == 4
    assert not any("gelu" in name for name in called)


@linear
def test_the_operation_is_registered_correctly() -> None:
    _, network = optimized()
    stage = stages(network)[1]
    assert stage.number is not None
    with torch.inference_mode():
        x = torch.randn(1, 128, 6, 5).contiguous(memory_format=torch.channels_last)
    operation, tests = torch.ops.metaformer.replay_stage.default, ("test_schema", "test_faketensor")
    torch.library.opcheck(operation, (x.clone(), stage.number), test_utils=tests)


@linear
def test_mixers_without_kernels_and_gradients_run_block_by_block() -> None:
    model, network = optimized(mixers=("pooling", "identity", "dwconv", "pooling"))
    assert [stage.number is None for stage in stages(network)] == [False, True, True, False]
    x = images().requires_grad_()
    torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
