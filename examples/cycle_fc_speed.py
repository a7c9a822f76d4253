"""CycleMLP-B1 here against the original's form: `python examples/cycle_fc_speed.py [batch] [rounds]`.

The original computes CycleFC as a deformable convolution and products over channels as `nn.Linear`. Both
forms run in turn, in one process, on the same weights and images. `python -m
benchmarks.suite --rows cyclemlp` compares more forms, and training.
"""

import sys

from metaformer.process import keep_freed_memory

keep_freed_memory()

import torch

import metaformer
from benchmarks.original_cyclemlp import original
from metaformer.bench.timing import measure, ratios


def main(batch: int = 8, rounds: int = 10) -> None:
    """Print milliseconds and ratio, round by round, then the ratio of the fastest rounds."""
    here = metaformer.create_model("cyclemlp_b1").eval()
    there = original(here)
    images = torch.randn(batch, 3, 224, 224)
    with torch.inference_mode():
        print(f"largest difference of the logits: {(here(images) - there(images)).abs().max():.1e}")
    ours, theirs = measure([here, there], [images, images], rounds=rounds, warmup=1)
    for mine, other, ratio in zip(ours.seconds, theirs.seconds, ratios(ours, theirs), strict=True):
        print(f"here {1e3 * mine:7.1f} ms   deformable {1e3 * other:7.1f} ms   ratio {ratio:.2f}")
    fastest, other = 1e3 * ours.minimum, 1e3 * theirs.minimum
    print(f"fastest: here {fastest:.1f} ms, deformable {other:.1f} ms, ratio {other / fastest:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
