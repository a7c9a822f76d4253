import pytest
import torch

from metaformer.errors import ConfigError
from metaformer.mixers import MIXERS


def test_softmax_attention_written_out() -> None:
    mixer = MIXERS.build("attention(head_dim=4, qkv_bias=True, proj_bias=True)", 8).double()
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ mixer.qkv.weight[:, :, 0, 0].T + mixer.qkv.bias).split(8, dim=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = (q[..., head] @ k[..., head].transpose(1, 2) / 2).softmax(-1)
        heads.append(scores @ v[..., head])
    expected = torch.cat(heads, -1) @ mixer.proj.weight[:, :, 0, 0].T + mixer.proj.bias
    torch.testing.assert_close(mixer(x).flatten(2).transpose(1, 2), expected)


def test_narrow_maps_have_one_head() -> None:
    assert MIXERS.build("attention", 8)(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


def test_dropout_acts_in_training_only() -> None:
    mixer = MIXERS.build("attention(head_dim=4, dropout=0.5)", 8)
    x = torch.randn(1, 8, 4, 4)
    assert not torch.equal(mixer.train()(x), mixer(x))
    assert torch.equal(mixer.eval()(x), mixer(x))


def test_empty_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim"):
        MIXERS.build("attention(head_dim=0)", 8)
