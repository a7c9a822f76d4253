import torch

from metaformer.layers.cycle_fc import CycleFC
from metaformer.mixers import MIXERS


def test_the_mixer_is_the_layer() -> None:
    mixer = MIXERS.build("cycle_fc(kernel=5, axis='height')", 6)
    assert isinstance(mixer, CycleFC) and (mixer.staircase, mixer.axis) == (5, "height")
    x = torch.zeros(1, 6, 5, 1)
    x[0, 1, 3] = 1  # channel 1 is read one position below
    assert mixer(x)[0, :, 2, 0].abs().sum() > 0 and mixer(x)[0, :, 3, 0].abs().sum() == 0
