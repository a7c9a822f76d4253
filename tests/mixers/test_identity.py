import torch

from metaformer.mixers import MIXERS


def test_tokens_stay() -> None:
    x = torch.randn(1, 4, 2, 2)
    assert MIXERS.build("identity", 4)(x) is x
