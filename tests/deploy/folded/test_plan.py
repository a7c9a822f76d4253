import threading

import pytest
import torch
from torch import Tensor

from metaformer.deploy.folded.stage import CapturedGraph, capture
from metaformer.ops import cpp
from metaformer.ops.attention import attention
from metaformer.ops.norm import layer_norm

pytestmark = pytest.mark.skipif(cpp.load() is None, reason="no C++ kernels on this machine")


def norms(x: Tensor, times: int = 5) -> Tensor:
    """(B, C, H, W) through some kernels, as blocks call them."""
    tokens = x.permute(0, 2, 3, 1)
    for _ in range(times):
        tokens = layer_norm(tokens, 0.5)
    return tokens.permute(0, 3, 1, 2)


def maps(batch: int = 2, **options: torch.dtype) -> Tensor:
    return torch.randn(batch, 32, 5, 3, **options).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_what_the_calls_gave(dtype: torch.dtype) -> None:
    plan = capture(norms, maps(dtype=dtype))
    assert isinstance(plan, CapturedGraph) and len(plan.calls) == 5
    results = []
    for _ in range(3):
        x = maps(dtype=dtype)
        results.append((plan(x), norms(x)))  # a result is not written again by the next call
    for found, wanted in results:
        assert found.stride() == wanted.stride()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@torch.inference_mode()
def test_maps_that_are_not_needed_at_once_share_memory() -> None:
    x = maps()
    for times in (4, 12):
        plan = capture(lambda x, times=times: norms(x, times), x)
        assert plan is not None
        rooms = {room.data_ptr(): room.nbytes for room in plan.owned}
        assert sum(rooms.values()) == 2 * x.nbytes


@torch.inference_mode()
def test_part_of_a_larger_tensor_is_read_where_it_lies() -> None:
    plan = capture(norms, maps(5)[1:3])
    assert plan is not None
    x = maps(7)
    torch.testing.assert_close(plan(x[3:5]), norms(x[3:5]), rtol=0, atol=0)


@torch.inference_mode()
def test_what_pytorch_computes_is_not_lost() -> None:
    assert capture(lambda x: norms(x) + 1, maps()) is None
    assert capture(lambda x: norms(x * 2), maps()) is None
    assert capture(lambda x: norms(x).relu_(), maps()) is None
    assert capture(lambda x: x, maps()) is None
    whole = torch.randn(2, 7, 3, 1, 20)  # a head of 20 channels has no kernel
    assert capture(lambda x: attention(whole), maps()) is None


@torch.inference_mode()
def test_weights_live_as_long_as_the_plan() -> None:
    def weighed(x: Tensor) -> Tensor:
        return layer_norm(x.permute(0, 2, 3, 1), 0.5, weights[0], weights[1]).permute(0, 3, 1, 2)

    weights = [torch.full((32,), 3.0), torch.full((32,), 4.0)]
    x = maps()
    wanted, plan = weighed(x), capture(weighed, x)
    assert plan is not None
    weights.clear()
    _ = [torch.zeros(32) for _ in range(100)]  # whoever gets freed memory writes it
    torch.testing.assert_close(plan(x), wanted, rtol=0, atol=0)


@torch.inference_mode()
def test_threads_take_turns() -> None:
    plan = capture(norms, maps())
    assert plan is not None
    wrong: list[float] = []

    def work() -> None:
        with torch.inference_mode():
            for _ in range(50):
                x = maps()
                wrong.append((plan(x) - norms(x)).abs().max().item())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 150 and not any(wrong)
