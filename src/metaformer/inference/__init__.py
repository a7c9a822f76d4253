"""Trained networks at work: load, predict, evaluate."""
