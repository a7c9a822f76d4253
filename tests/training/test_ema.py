import torch
from torch import nn

from metaformer.training.ema import Ema


def test_parameters_and_running_statistics_are_averaged_and_integers_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, 0.75)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    ema.update(model)
    for name, value in ema.model.state_dict().items():
        step = 1 if not value.is_floating_point() else 0.25
        torch.testing.assert_close(value, before[name] + step)


def test_the_average_is_a_separate_model_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train()
    ema = Ema(model, 0.9)
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
