"""What the networks of a study cost: arithmetic, time and memory at several image sizes."""

from typing import Final

import torch
from torch import Tensor, nn

from metaformer.bench.counts import count
from metaformer.bench.timing import TrainingStep, measure
from metaformer.study.arms import arm_network
from metaformer.study.budget import BATCH
from metaformer.study.plan import Plan
from metaformer.study.results import Arm, Cost
from metaformer.training.tensor_memory import TensorMemory

ROUNDS: Final = 5
"""Rounds of a latency, of which the fastest counts."""


def measure_costs(plan: Plan, arm: Arm, classes: int, device: torch.device) -> tuple[Cost, ...]:
    """Costs of an arm at the plan's image sizes, on this machine."""
    return tuple(_cost(plan, arm, classes, size, device) for size in plan.sizes)


def _cost(plan: Plan, arm: Arm, classes: int, size: int, device: torch.device) -> Cost:
    network: nn.Module = arm_network(plan, arm, classes, size).eval()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = [torch.zeros(batch, 3, size, size, device=device) for batch in (1, BATCH)]
    single, batch = measure([network, network], images, rounds=ROUNDS)
    return Cost(
        image_size=size,
        macs=count(network, (size, size)).macs,
        latency_1=1e3 * single.minimum,
        latency_8=1e3 * batch.minimum,
        inference_memory=peak_memory(network, images[1]),
        training_memory=peak_memory(TrainingStep(network.train()), images[1]),
    )


def peak_memory(run: nn.Module, images: Tensor) -> int:
    """Bytes of the tensors that a pass holds at one time, at most, beside weights and images.

    A training step keeps the gradients of all weights among them. On CUDA it is what PyTorch has allocated,
    the workspaces of kernels included.
    """
    device = images.device
    training = run.training
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.inference_mode(not training):
            run(images)
        return torch.cuda.max_memory_allocated(device) - before
    with TensorMemory() as memory, torch.inference_mode(not training):
        run(images)
    return memory.peak
