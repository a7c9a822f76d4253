import torch

from metaformer.backbones.block import build_mixer


def test_one_matrix_over_positions_for_every_channel() -> None:
    mixer = build_mixer("spatial_fc", 3, (2, 3), "strict")
    x = torch.randn(2, 3, 2, 3)
    expected = torch.einsum("mn,bcn->bcm", mixer.fc.weight, x.flatten(2)).reshape(x.shape)
    torch.testing.assert_close(mixer(x), expected)
    assert mixer.fc.bias is None
