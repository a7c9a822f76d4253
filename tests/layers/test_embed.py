import pytest
import torch

from metaformer.errors import GridError
from metaformer.layers.embed import Downsample, PositionEmbedding, Stem


def test_stem_norm_comes_after_and_downsample_norm_before() -> None:
    stem = Stem(3, 8, 7, 4, 2, norm="layer_norm")
    assert stem(torch.randn(1, 3, 32, 32)).mean(1).abs().max() < 1e-5
    down = Downsample(8, 4, 3, 2, 1, norm="layer_norm")
    x = torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(down(x), down(3 * x), rtol=1e-3, atol=1e-4)
    assert down(x).shape == (1, 4, 4, 4)


def test_position_embedding_starts_at_zero_and_belongs_to_a_grid() -> None:
    x = torch.randn(1, 4, 3, 3)
    strict = PositionEmbedding(4, (3, 3))
    assert torch.equal(strict(x), x)
    with pytest.raises(GridError, match="3×3 positions and got 4×4"):
        strict(torch.randn(1, 4, 4, 4))
    free = PositionEmbedding(4, (3, 3), "interpolate")
    torch.nn.init.ones_(free.weight)
    torch.testing.assert_close(free(torch.zeros(1, 4, 5, 6)), torch.ones(1, 4, 5, 6))
