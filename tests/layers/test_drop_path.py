import torch

from metaformer.layers.drop_path import DropPath


def test_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 2, 1, 1))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert torch.equal(y[:, 0], y[:, 1])
    assert abs(y.mean().item() - 1) < 0.05


def test_nothing_happens_in_evaluation() -> None:
    x = torch.ones(8, 1, 1, 1)
    assert DropPath(0.9).eval()(x) is x
