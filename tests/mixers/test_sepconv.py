import pytest
import torch
import torch.nn.functional as F

from metaformer.errors import ConfigError
from metaformer.mixers import MIXERS


def test_widen_activate_convolve_narrow() -> None:
    mixer = MIXERS.build("sepconv(kernel=3, expansion=2)", 4)
    assert {name for name, _ in mixer.named_parameters()} == {
        "pwconv1.weight", "act1.scale", "act1.bias", "dwconv.weight", "pwconv2.weight",
    }  # fmt: skip
    x = torch.randn(2, 4, 5, 5)
    hidden = F.relu(F.conv2d(x, mixer.pwconv1.weight)) ** 2 * mixer.act1.scale + mixer.act1.bias
    expected = F.conv2d(F.conv2d(hidden, mixer.dwconv.weight, padding=1, groups=8), mixer.pwconv2.weight)
    torch.testing.assert_close(mixer(x), expected)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="odd"):
        MIXERS.build("sepconv(kernel=6)", 4)
