"""Triton kernels, and the operations of `torch.ops.metaformer` made of them.

Importing this registers the operations and needs Triton: `metaformer.ops.backend` does it where they can run.
"""

from metaformer.ops.kernels import cycle_mix, norm_mlp, pointwise_act, pointwise_residual, pool_residual

__all__ = ["cycle_mix", "norm_mlp", "pointwise_act", "pointwise_residual", "pool_residual"]
