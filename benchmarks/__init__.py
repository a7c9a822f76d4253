"""Comparisons with other implementations: `python -m benchmarks.suite`, `python -m benchmarks.loading`."""
