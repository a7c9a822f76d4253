"""Multi-label image classification."""
