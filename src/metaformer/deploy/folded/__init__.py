"""Blocks and heads for inference: constants folded into the weights, tensors as (B, H, W, C)."""
