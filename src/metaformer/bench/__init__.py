"""Parameters, multiply-adds, activations and speed of any model; needs torch, safetensors and numpy alone."""

from metaformer.bench.counts import Counts, count
from metaformer.bench.report import BenchReport
from metaformer.bench.run import BenchConfig, bench

__all__ = ["BenchConfig", "BenchReport", "Counts", "bench", "count"]
