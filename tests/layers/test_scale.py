import torch

from metaformer.layers.scale import Scale


def test_one_number_per_channel_for_every_sample_and_position() -> None:
    scale = Scale(3, 0.5)
    assert scale.scale.tolist() == [0.5] * 3
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.ones(2, 3, 4, 5)
    assert torch.equal(scale(x), torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1).expand(2, 3, 4, 5))
