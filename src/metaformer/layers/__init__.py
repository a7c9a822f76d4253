"""The small parts between the mixers: norms, activations, scales, MLP, patch embedding."""
