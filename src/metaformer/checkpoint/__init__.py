"""Checkpoints and run directories."""
