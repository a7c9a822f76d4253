"""No mixing at all: IdentityFormer, https://arxiv.org/abs/2210.13452.

Yu et al. MetaFormer Baselines for Vision. TPAMI 2024.
"""

from torch import nn

from metaformer.mixers import MIXERS


@MIXERS.register("identity")
class Identity(nn.Identity):
    """No mixing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
