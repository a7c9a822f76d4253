"""Parts of a block for inference alone: constants folded into the weights, tokens last (B, H, W, C)."""
