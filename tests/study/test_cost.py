"""Memory of a pass, counted in the tensors that live at one time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.bench.timing import TrainingStep
from metaformer.study.arms import arm_network
from metaformer.study.cost import peak_memory
from metaformer.study.results import Arm
from metaformer.training.tensor_memory import TensorMemory

KB = 1024


def test_tensors_count_as_long_as_they_live() -> None:
    given = torch.zeros(256)
    with TensorMemory() as memory:
        a = given + 1
        assert memory.live == KB
        b = a + 1
        assert memory.live == 2 * KB
        del a
        assert memory.live == KB
        view = b.view(16, 16).t()
        b.mul_(2)
        assert memory.live == KB, "views and operations in place take nothing"
        del b
        assert memory.live == KB, "the view holds it"
        del view
    assert (memory.live, memory.peak) == (0, 2 * KB)


class Chain(nn.Module):
    """Sines of sines."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(8):
            x = x.sin()
        return x.flatten(1)[:, :2]


def test_training_keeps_what_inference_lets_go() -> None:
    images = torch.zeros(1, 1, 16, 16, requires_grad=True)
    size = 16 * 16 * 4
    assert peak_memory(Chain().eval(), images) == 2 * size
    assert peak_memory(TrainingStep(Chain()), images) >= 8 * size


def test_pooling_takes_memory_in_proportion_to_pixels(make_plan: Callable[..., Any]) -> None:
    plan = make_plan()

    def memory(mixer: str, size: int) -> int:
        network = arm_network(plan, Arm(name="x", mixers=(mixer,) * 4, parameters=0), 3, size).eval()
        return peak_memory(network, torch.zeros(8, 3, size, size))

    assert memory("pooling", 128) == pytest.approx(4 * memory("pooling", 64), rel=0.1)
    assert memory("pooling", 64) == memory("pooling", 64)
