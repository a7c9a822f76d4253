import json
from typing import Any

import pytest

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, UnknownName
from metaformer.serialize import differences, from_dict, to_dict


def test_a_configuration_survives_json() -> None:
    config = from_dict({"optim": {"lr": 1, "clip": 0.5}, "model": {"mixers": ["pooling", "attention"]}})
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert again.optim.lr == 1.0 and isinstance(again.data.mean, tuple)


def test_fields_left_out_are_the_defaults() -> None:
    assert from_dict({}) == TrainConfig()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"optim": {"lrr": 1}}, "optim.lrr.*did you mean optim.lr"),
        ({"optim": 3}, "optim: 3 must be a mapping"),
        ({"optim": {"lr": "fast"}}, "optim.lr: 'fast' must be float"),
        ({"data": {"batch_size": 1.5}}, "data.batch_size: 1.5 must be int"),
        ({"data": {"batch_size": True}}, "data.batch_size: True must be int"),
        ({"data": {"mean": [0.1, 0.2]}}, "data.mean"),
        ({"loss": {"name": "mse"}}, "loss.name: 'mse' must be one of 'cross_entropy', 'bce', 'jsd'"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, UnknownName), match=told):
        from_dict(values)


def test_differences_are_named_with_both_values() -> None:
    old, new = to_dict(from_dict({})), to_dict(from_dict({"optim": {"lr": 0.5}, "seed": 7}))
    assert differences(old, new) == ["optim.lr: 0.001 → 0.5", "seed: 42 → 7"]
    assert differences(old, json.loads(json.dumps(old))) == []


@pytest.mark.parametrize("mode", [True, False, "mlp"])
def test_two_kinds_of_values(mode: object) -> None:
    config = from_dict({"model": {"grad_checkpointing": mode}})
    assert config.model.grad_checkpointing == mode and from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"model\.grad_checkpointing: 'all' must be"):
        from_dict({"model": {"grad_checkpointing": "all"}})
