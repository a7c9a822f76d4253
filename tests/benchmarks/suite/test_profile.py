"""Where time goes, on modules of which it is known."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.suite import profile as subject
from benchmarks.suite.profile import Profile, profile

WIDE = torch.randn(1024, 1024)


class Does(nn.Module):
    """Does one thing."""

    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> None:
        self.what(x)


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        (lambda x: x @ x, "products"),
        (lambda x: x.exp_().neg_(), "passes"),
        (lambda x: time.sleep(0.01), "rest"),
    ],
)
def test_a_kind_of_work_is_found(what: Callable[[Tensor], object], wanted: str) -> None:
    with torch.inference_mode():
        found = profile(Does(what), WIDE.clone())
    assert found.rest is not None and found.products + found.passes + found.rest == pytest.approx(1)
    assert getattr(found, wanted) > 0.8, str(found)


def test_a_backward_pass_is_seen() -> None:
    weight = nn.Parameter(WIDE.clone())
    found = profile(Does(lambda x: (x @ weight).sum().backward()), WIDE)
    assert found.products > 0.5, str(found)


def test_of_generated_code_only_products_are_told() -> None:
    with torch.inference_mode():
        found = profile(Does(lambda x: (x @ x).exp_()), WIDE, generated=True)
    assert found.rest is None and found.products + found.passes == 1 and found.products > 0.5


def test_a_profile_that_disturbs_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slowdowns = iter((1.8, 0.7, 1.4, 1.0))

    def once(module: nn.Module, images: Tensor, generated: bool) -> Profile:
        return Profile(0.5, 0.5, 0.0, next(slowdowns))

    monkeypatch.setattr(subject, "_once", once)
    assert profile(nn.Identity(), WIDE).slowdown == 0.7, "the closest of three"
    assert profile(nn.Identity(), WIDE).slowdown == 1.0 and not list(slowdowns), "the first that is close"


def test_in_a_line() -> None:
    assert str(Profile(0.5, 0.3, 0.2, 1)) == (
        "products 50%, passes over memory 30%, Python, dispatch and allocation 20%"
    )
    assert str(Profile(0.5, 0.5, None, 1)) == "products at least 50%, generated code and the rest 50%"
