import math

import pytest
import torch
from torch import Tensor, nn

from metaformer.training.diagnose import REMEDIES, Fault, bad_gradient, bad_weight, finite, watched


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 1e9).log()


def test_the_first_module_that_gives_what_is_not_finite_is_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Log()), nn.Linear(2, 2))
    with watched(model) as found:
        model(torch.ones(1, 2))
    assert found.first == "1.1"
    with watched(model[0]) as found:
        model[0](torch.ones(1, 2))
    assert found.first is None
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_weights_and_buffers_are_found(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert bad_weight(model) is None
    model[1].running_var[1] = value
    assert bad_weight(model) == "1.running_var"
    with torch.no_grad():
        model[0].bias[0] = value
    assert bad_weight(model) == "0.bias"


def test_the_gradient_that_goes_wrong_first_is_the_last_of_the_forward_pass() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert bad_gradient(model) is None
    for name in ("0.weight", "1.weight"):
        model.get_parameter(name).grad = torch.tensor([[math.nan]])
    assert bad_gradient(model) == "1.weight"


def test_whole_numbers_are_finite() -> None:
    assert finite(torch.tensor([1])) and not finite(torch.tensor([math.nan]))


@pytest.mark.parametrize("what", REMEDIES)
def test_a_fault_is_told_in_one_line_with_a_remedy(what: str) -> None:
    told = Fault(what, "stem.conv", [f"{i}.png" for i in range(10)]).told(most=3)
    assert f"the {what} is not finite, first at stem.conv" in told and REMEDIES[what] in told
    assert told.endswith("Images: 0.png, 1.png, 2.png and 7 more") and "\n" not in told
