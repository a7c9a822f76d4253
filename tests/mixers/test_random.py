import torch

from metaformer.backbones.block import build_mixer


def test_frozen_average_over_all_positions() -> None:
    mixer = build_mixer("random", 3, (2, 3), "strict")
    assert not mixer.random_matrix.requires_grad
    torch.testing.assert_close(mixer.random_matrix.sum(1), torch.ones(6))
    assert mixer.random_matrix.min() > 0
    x = torch.randn(2, 3, 2, 3)
    expected = torch.einsum("mn,bcn->bcm", mixer.random_matrix, x.flatten(2)).reshape(x.shape)
    torch.testing.assert_close(mixer(x), expected)
