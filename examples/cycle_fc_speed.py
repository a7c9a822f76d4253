"""CycleMLP-B1 here against the original's form: `python examples/cycle_fc_speed.py [batch] [rounds]`.

The original computes CycleFC as a deformable convolution and products over channels as `nn.Linear`. Both
forms run in turn, in one process, on the same weights and pictures.
"""

import copy
import sys
import time

from metaformer.ops.process import keep_freed_memory

keep_freed_memory()

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

import metaformer
from metaformer.layers.cycle_fc import CycleFC
from metaformer.layers.pointwise import Pointwise
from metaformer.ops.shift import staircase


class Deformable(nn.Module):
    """A CycleFC by deformable convolution."""

    def __init__(self, layer: CycleFC) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        steps = torch.tensor(staircase(layer.staircase))[torch.arange(layer.in_channels) % layer.staircase]
        offset = torch.zeros(layer.in_channels, 2)
        offset[:, 1 if layer.axis == "width" else 0] = steps.float()
        self.register_buffer("offset", offset.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return deform_conv2d(x, self.offset.expand(len(x), -1, *x.shape[2:]), self.weight, self.bias)


class Linear(nn.Module):
    """A product over channels by `nn.Linear`'s function."""

    def __init__(self, layer: Pointwise) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def original(model: nn.Module) -> nn.Module:
    """The same network in the original's form."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Pointwise):
                setattr(parent, name, Deformable(child) if isinstance(child, CycleFC) else Linear(child))
    return model


def main(batch: int = 8, rounds: int = 10) -> None:
    """Print milliseconds and ratio, round by round, then the ratio of the fastest rounds."""
    here = metaformer.create_model("cyclemlp_b1").eval()
    there = original(here)
    images = torch.randn(batch, 3, 224, 224)
    best = [float("inf")] * 2
    with torch.inference_mode():
        print(f"largest difference of the logits: {(here(images) - there(images)).abs().max():.1e}")
        for _ in range(rounds):
            times = []
            for i, model in enumerate((here, there)):
                start = time.perf_counter()
                model(images)
                times.append(1e3 * (time.perf_counter() - start))
                best[i] = min(best[i], times[i])
            print(
                f"here {times[0]:7.1f} ms   deformable {times[1]:7.1f} ms   ratio {times[1] / times[0]:.2f}"
            )
    print(f"fastest: here {best[0]:.1f} ms, deformable {best[1]:.1f} ms, ratio {best[1] / best[0]:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
