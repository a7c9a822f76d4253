"""Weights: published files, their formats, and reading and writing them safely."""
