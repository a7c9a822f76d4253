"""Comparisons of token mixers under control: plan, runs, statistics, report."""
