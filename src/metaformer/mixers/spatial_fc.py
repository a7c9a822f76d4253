"""A learned matrix over positions (PoolFormer paper, Table 5), https://arxiv.org/abs/2111.11418.

Yu et al. MetaFormer Is Actually What You Need for Vision. CVPR 2022.
"""

from metaformer.layers.spatial_fc import SpatialFC
from metaformer.mixers import MIXERS

MIXERS.register("spatial_fc", fixed_grid=True)(SpatialFC)
