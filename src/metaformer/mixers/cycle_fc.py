"""One CycleFC as a token mixer, https://arxiv.org/abs/2107.10224.

Chen et al. CycleMLP: A MLP-like Architecture for Dense Prediction. ICLR 2022.
"""

from metaformer.layers.cycle_fc import CycleFC
from metaformer.mixers import MIXERS

MIXERS.register("cycle_fc")(CycleFC)
