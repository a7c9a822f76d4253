"""Blocks and heads for inference: constants folded into the weights, tensors channels-last as (B, H, W, C)."""
