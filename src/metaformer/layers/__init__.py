"""Layers between the mixers: norms, activations, scales, MLP, patch embedding."""
