"""What the networks of a study cost: arithmetic, time and memory at several image sizes."""

import weakref
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metaformer.bench.counts import count
from metaformer.bench.timing import TrainingStep, measure
from metaformer.study.arms import arm_network
from metaformer.study.budget import BATCH
from metaformer.study.plan import Plan
from metaformer.study.results import Arm, Cost

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


class TensorMemory(TorchDispatchMode):
    """Bytes of the tensors that operations make while it is entered, as long as they live.

    Unlike the resident memory of a process it is the same on every machine, whatever has been freed before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _address(leaf) not in given | self._known.keys():
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _address(tensor)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self._known[key] = weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


def _address(tensor: Tensor) -> int:
    """What tells storages apart, as long as they live."""
    return int(tensor.untyped_storage()._cdata)
