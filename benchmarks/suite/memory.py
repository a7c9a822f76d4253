"""How much memory a training step or an inference takes at its peak, beside weights and images."""

import json
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def peak(module: nn.Module, images: Tensor) -> int:
    """Run a module and give the most bytes it held at once; run it before, so that nothing is new to it.

    On CUDA the allocator counts. On the CPU the profiler tells of each block that PyTorch's allocator gives
    and takes back, Inductor's buffers among them; what oneDNN and OpenVINO keep for themselves is not seen.
    """
    module.zero_grad(set_to_none=True)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        module(images)
        return torch.cuda.max_memory_allocated(images.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module(images)
    return max(accumulate(_allocations(profiler)), default=0)


def _allocations(profiler: Any) -> Iterable[int]:
    """Bytes taken, and as negative numbers given back, in order of time."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(place))
        events = json.loads(place.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return [int(event["args"]["Bytes"]) for event in sorted(memory, key=lambda event: event["ts"])]
