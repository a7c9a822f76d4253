"""Attention weights and their rollout against plain loops."""

import numpy as np
import torch
from torch import Tensor, nn

from metaformer.attribution.attention import attention_maps, attention_received, attention_rollout
from metaformer.factory import create_model
from metaformer.mixers.attention import Attention

HYBRID = {
    "depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16),
    "mixers": ("pooling", "pooling", "attention(head_dim=8)", "attention"),
}  # fmt: skip


def test_weights_are_a_softmax_and_give_the_output() -> None:
    torch.manual_seed(0)
    mixer, x = Attention(16, head_dim=8).double(), torch.randn(2, 16, 3, 4, dtype=torch.float64)
    weights = mixer.attention_weights(x).detach()
    assert weights.shape == (2, 2, 12, 12)
    q, k, v = mixer.qkv(x).detach().flatten(2).unflatten(1, (3, 2, 8)).unbind(1)  # each (B, heads, D, N)
    for batch in range(2):
        heads = []
        for head in range(2):
            scores = (q[batch, head].T @ k[batch, head] / 8**0.5).numpy()
            expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(weights[batch, head].numpy(), expected, atol=1e-12)
            heads.append(torch.from_numpy(expected) @ v[batch, head].T)
        mixed = torch.cat(heads, 1).T.reshape(1, 16, 3, 4)
        torch.testing.assert_close(mixer.proj(mixed)[0], mixer(x)[batch])


def test_rollout_is_the_product_of_all_blocks_with_their_residuals() -> None:
    random = np.random.RandomState(0)
    maps = [random.rand(3, 2, 2, 2, 2) for _ in range(3)]
    maps = [one / one.sum(axis=(3, 4), keepdims=True) for one in maps]
    expected = np.eye(4)
    for one in maps:
        block = np.zeros((4, 4))
        for head in one:
            block += head.reshape(4, 4) / 3
        expected = (0.5 * block + 0.5 * np.eye(4)) @ expected
    rolled = attention_rollout([torch.from_numpy(one) for one in maps])
    np.testing.assert_allclose(rolled.numpy().reshape(4, 4), expected, atol=1e-12)
    np.testing.assert_allclose(rolled.sum((2, 3)).numpy(), 1)


def test_maps_of_the_stages_that_attend() -> None:
    torch.manual_seed(0)
    network, x = create_model("poolformer_n", **HYBRID).eval(), torch.randn(1, 3, 64, 96)
    assert attention_maps(network, x, 0) == [] and attention_received(network, x, 1) is None
    maps = attention_maps(network, x, 2)
    assert [one.shape for one in maps] == [(2, 4, 6, 4, 6)] * 2
    torch.testing.assert_close(maps[0].sum((3, 4)), torch.ones(2, 4, 6))
    received = attention_received(network, x, -2)
    assert received is not None and received.shape == (4, 6)
    torch.testing.assert_close(received, attention_rollout(maps).sum((0, 1)))
    torch.testing.assert_close(received.mean(), torch.tensor(1.0))
    assert not network.stages[2].blocks[0].token_mixer._forward_pre_hooks


def test_a_mixer_of_ones_own_takes_part_by_its_method() -> None:
    class Mean(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()

        def attention_weights(self, x: Tensor) -> Tensor:
            count = x.shape[2] * x.shape[3]
            return torch.full((len(x), 1, count, count), 1 / count)

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=True).expand_as(x)

    network = create_model("poolformer_n", mixers=Mean, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)).eval()
    received = attention_received(network, torch.randn(1, 3, 64, 64), 1)
    assert received is not None
    torch.testing.assert_close(received, torch.ones(8, 8))
