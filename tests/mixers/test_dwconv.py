import pytest
import torch

from metaformer.errors import ConfigError
from metaformer.mixers import MIXERS


def test_channels_do_not_meet() -> None:
    mixer = MIXERS.build("dwconv(kernel=5, bias=False)", 3)
    x = torch.zeros(1, 3, 5, 5)
    x[0, 1, 2, 2] = 1
    y = mixer(x)
    assert y[0, 0].abs().sum() == 0 and y[0, 2].abs().sum() == 0
    torch.testing.assert_close(y[0, 1], mixer.conv.weight[1, 0].flip(0, 1))


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="odd"):
        MIXERS.build("dwconv(kernel=4)", 4)
