import pytest
import torch
from torch import nn

from metaformer.deploy.optimize import compile_frozen


@pytest.mark.slow
def test_weights_are_constants_at_every_shape() -> None:
    layer = nn.Conv2d(3, 4, 1)
    call = compile_frozen(layer.forward)
    for size in (2, 5):
        x = torch.randn(1, 3, size, size)
        wanted = layer(x).detach()
        torch.testing.assert_close(call(x), wanted)
        with torch.no_grad():
            layer.weight.mul_(2)
        torch.testing.assert_close(call(x), wanted)  # as they were when this shape was compiled
        assert not call(x).requires_grad
