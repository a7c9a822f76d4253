"""Profiles of known modules: shares of time by kind of operation, and peak memory."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.suite import profile as subject
from benchmarks.suite.profile import CPP_PRODUCTS, OURS, Profile, kind, peak_memory, profile, recorded_kernels
from metaformer.bench.timing import TrainingStep
from metaformer.deploy.optimize import optimize
from metaformer.factory import create_model
from metaformer.ops import cpp
from metaformer.ops.cpp import kernels

WIDE = torch.randn(1024, 1024)


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> None:
        self.function(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ x, "products"),
        (lambda x: x.exp_().neg_(), "passes"),
        (lambda x: time.sleep(0.01), "rest"),
    ],
)
def test_each_kind_of_operation(function: Callable[[Tensor], object], expected: str) -> None:
    with torch.inference_mode():
        found = profile(Calls(function), WIDE.clone())
    assert found.rest is not None and found.products + found.passes + found.rest == pytest.approx(1)
    assert getattr(found, expected) > 0.8, str(found)


def test_a_backward_pass_is_profiled() -> None:
    weight = nn.Parameter(WIDE.clone())
    found = profile(Calls(lambda x: (x @ weight).sum().backward()), WIDE)
    assert found.products > 0.5, str(found)


def test_of_generated_code_products_alone() -> None:
    with torch.inference_mode():
        found = profile(Calls(lambda x: (x @ x).exp_()), WIDE, generated=True)
    assert found.rest is None and found.products + found.passes == 1 and found.products > 0.5


def test_a_distorted_profile_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    slowdowns = iter((1.8, 0.7, 1.4, 1.0))

    def once(module: nn.Module, images: Tensor, generated: bool) -> Profile:
        return Profile(0.5, 0.5, 0.0, next(slowdowns))

    monkeypatch.setattr(subject, "_once", once)
    assert profile(nn.Identity(), WIDE).slowdown == 0.7, "the closest of three"
    assert profile(nn.Identity(), WIDE).slowdown == 1.0 and not list(slowdowns), "the first that is close"


def test_text() -> None:
    assert str(Profile(0.5, 0.3, 0.2, 1)) == (
        "products 50%, passes over memory 30%, Python, dispatch and allocation 20%"
    )
    assert str(Profile(0.5, 0.5, None, 1)) == "products at least 50%, generated code and the rest 50%"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mkldnn::_linear_pointwise", "products"),
        ("mkl::_mkl_linear", "products"),
        ("aten::addmm", "products"),
        ("aten::convolution_backward", "products"),
        ("aten::native_layer_norm", "passes"),
        ("aten::copy_", "passes"),
        ("aten::empty_like", "rest"),
        ("aten::transpose", "rest"),
        ("metaformer::train_mlp", "rest"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "rest"),
        ("TorchDynamo Cache Lookup", "rest"),
    ],
)
def test_kinds_by_name(name: str, expected: str) -> None:
    assert kind(name) == expected


@pytest.mark.parametrize("kernel", kernels.SIGNATURES)
def test_kernels_have_a_kind(kernel: str) -> None:
    assert kind(f"{OURS}{kernel}") == ("products" if kernel in CPP_PRODUCTS else "passes")


@pytest.mark.skipif(cpp.load() is None, reason=cpp.describe())
def test_our_kernels_are_recorded_inside_the_block() -> None:
    network, images = optimize(create_model("poolformer_n").eval()), torch.randn(1, 3, 32, 32)

    def recorded() -> set[str]:
        with torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
            network(images)
        return {event.name for event in profiler.events() or () if event.name.startswith(OURS)}

    with torch.inference_mode():
        plain = network(images)
        with recorded_kernels():
            first = recorded()
            assert first and recorded() == recorded() == first, "also when captured and replayed"
            torch.testing.assert_close(network(images), plain)
        assert not recorded()


def test_without_a_compiler_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "load", lambda: None)
    with recorded_kernels():
        pass


WIDTH = 1 << 20


def network() -> nn.Module:
    """One wide activation (B, WIDTH) saved for the backward pass, and another in use."""
    return nn.Sequential(nn.Flatten(), nn.Linear(1, WIDTH, bias=False), nn.Sigmoid(), nn.AdaptiveAvgPool1d(4))


def test_peak_memory() -> None:
    step, images = TrainingStep(network()), torch.ones(4, 1, 1, 1)
    step(images)
    activations = peak_memory(step, images) / (4 * WIDTH * 4)
    assert 1.9 < activations < 4, "the product and its sigmoid, but not all that was ever allocated"


@pytest.mark.slow
def test_peak_memory_of_compiled_code() -> None:
    step, images = TrainingStep(torch.compile(network())), torch.ones(4, 1, 1, 1)  # type: ignore[arg-type]
    step(images)
    assert peak_memory(step, images) > 4 * WIDTH * 4
