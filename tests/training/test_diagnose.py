import math

import pytest
import torch
from torch import Tensor, nn

from metaformer.training.diagnose import (
    REMEDIES,
    NonFinite,
    is_finite,
    nonfinite_gradient,
    nonfinite_weight,
    record_nonfinite,
)


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 1e9).log()


def test_the_first_module_with_a_nonfinite_output_is_recorded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Log()), nn.Linear(2, 2))
    with record_nonfinite(model) as modules:
        model(torch.ones(1, 2))
    assert modules == ["1.1"]
    with record_nonfinite(model[0]) as modules:
        model[0](torch.ones(1, 2))
    assert modules == []
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_weights_and_buffers_are_found(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert nonfinite_weight(model) is None
    model[1].running_var[1] = value
    assert nonfinite_weight(model) == "1.running_var"
    with torch.no_grad():
        model[0].bias[0] = value
    assert nonfinite_weight(model) == "0.bias"


def test_the_first_nonfinite_gradient_of_the_backward_pass_is_found() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert nonfinite_gradient(model) is None
    for name in ("0.weight", "1.weight"):
        model.get_parameter(name).grad = torch.tensor([[math.nan]])
    assert nonfinite_gradient(model) == "1.weight"


def test_integers_are_finite() -> None:
    assert is_finite(torch.tensor([1])) and not is_finite(torch.tensor([math.nan]))


@pytest.mark.parametrize("kind", REMEDIES)
def test_the_message_is_one_line_with_a_remedy(kind: str) -> None:
    text = NonFinite(kind, "stem.conv", [f"{i}.png" for i in range(10)]).message(max_files=3)
    assert f"the {kind} is not finite, first at stem.conv" in text and REMEDIES[kind] in text
    assert text.endswith("Images: 0.png, 1.png, 2.png and 7 more") and "\n" not in text
