"""Parameters, multiply-adds, activations and speed of any model; needs torch, safetensors and numpy alone."""

from metaformer.bench.counts import Counts, count
from metaformer.bench.run import BenchConfig, BenchReport, bench

__all__ = ["BenchConfig", "BenchReport", "Counts", "bench", "count"]
