"""Kinds of work, by name."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.suite.operation import MULTIPLYING, OURS, kind, named_kernels
from metaformer.deploy.optimize import optimize
from metaformer.factory import create_model
from metaformer.ops import cpp
from metaformer.ops.cpp import kernels


@pytest.mark.parametrize(
    ("name", "wanted"),
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
def test_operations(name: str, wanted: str) -> None:
    assert kind(name) == wanted


@pytest.mark.parametrize("kernel", kernels.SIGNATURES)
def test_kernels_are_never_the_rest(kernel: str) -> None:
    assert kind(f"{OURS}{kernel}") == ("products" if kernel in MULTIPLYING else "passes")


@pytest.mark.skipif(cpp.load() is None, reason=cpp.describe())
def test_the_profiler_sees_our_kernels_while_it_is_asked_to() -> None:
    network, images = optimize(create_model("poolformer_n").eval()), torch.randn(1, 3, 32, 32)

    def seen() -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            network(images)
        return {event.name for event in profiler.events() or () if event.name.startswith(OURS)}

    with torch.inference_mode():
        plain = network(images)
        with named_kernels():
            first = seen()
            assert first and seen() == seen() == first, "also where calls are noted, and made again"
            torch.testing.assert_close(network(images), plain)
        assert not seen()


def test_without_a_compiler_there_is_nothing_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "load", lambda: None)
    with named_kernels():
        pass
