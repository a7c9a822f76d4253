"""Networks by side."""

import sys

import pytest
import torch

from benchmarks.suite.sides import build
from metaformer.errors import ConfigError, UnknownName


def test_the_same_weights_each_time() -> None:
    first, second = (build("ours", "poolformer_n", 32).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="timm"):
        build("tim", "poolformer_s12", 32)
    with pytest.raises(ConfigError, match="timm has no cyclemlp_b1"):
        build("timm", "cyclemlp_b1", 32)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        build("timm", "poolformer_s12", 32)


def test_scales_and_biases_are_as_after_training() -> None:
    network = build("ours", "poolformer_n", 32)
    scales = [p for name, p in network.named_parameters() if "layer_scale" in name]
    assert scales and all(scale.std() > 0.05 for scale in scales)
