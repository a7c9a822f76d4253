import json
import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pytest

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError
from metaformer.serialize import (
    POSITIVE,
    POSITIVE_INT,
    PROBABILITY,
    OneOf,
    Range,
    Serializable,
    differences,
    from_dict,
    to_dict,
)


@dataclass(frozen=True)
class Part(Serializable):
    side: Annotated[int, POSITIVE_INT]
    sides: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Record(Serializable):
    name: Annotated[str, OneOf(("cosine", "constant"))] = "cosine"
    share: Annotated[float, PROBABILITY] = 0.5
    rate: Annotated[float, Range(0, 1, below=True)] = 0.1
    count: Annotated[int, POSITIVE_INT] | None = None
    factors: tuple[Annotated[float, POSITIVE], ...] = ()
    mode: bool | Literal["mlp"] = False
    crops: Literal[1, 5] = 1
    part: Part | None = None
    parts: list[Part] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


FULL = Record(
    "constant", 1.0, 0.0, 3, (0.5, 2.0), "mlp", 5, Part(1), [Part(2, (3, 4))], {"a": [1, {"b": None}]}
)


@pytest.mark.parametrize("record", [Record(), FULL, Record(mode=True)])
def test_a_dataclass_survives_json(record: Record) -> None:
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert from_dict(Record, {}) == Record()


def test_values_have_their_types() -> None:
    config = from_dict(TrainConfig, {"optim": {"lr": 1}, "data": {"mean": [0, 0, 1]}})
    assert type(config.optim.lr) is float and config.data.mean == (0.0, 0.0, 1.0)
    assert Record(factors=[1, 2]).factors == (1.0, 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("name", "cosin", "did you mean cosine"),
        ("name", 3, "one of 'cosine', 'constant'"),
        ("share", 1.5, "a number from 0 to 1"),
        ("share", "0.5", "a number"),
        ("share", math.nan, "a number"),
        ("share", True, "a number"),
        ("share", 10**400, "a number"),
        ("rate", 1, "a number of at least 0 and below 1"),
        ("count", 0, "an integer of at least 1 or null"),
        ("count", 1.5, "an integer"),
        ("factors", [1, 0], "a list, each a number above 0"),
        ("factors", "12", "a list"),
        ("mode", "all", "true or false or one of 'mlp'"),
        ("crops", 2, "one of 1, 5"),
        ("crops", True, "one of 1, 5"),
        ("part", 3, "a mapping of fields or null"),
        ("parts", {}, "a list"),
        ("more", [], "a mapping"),
        ("more", "x" * 10_000, "x …"),
    ],
)
def test_wrong_values_are_named_with_the_field_and_what_fits(field: str, value: Any, wanted: str) -> None:
    for make in (lambda: Record(**{field: value}), lambda: Record.from_dict({field: value})):
        with pytest.raises(ConfigError, match=wanted) as error:
            make()
        assert field in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (TrainConfig, {"optim": {"lrr": 1}}, "optim.lrr.*did you mean optim.lr"),
        (TrainConfig, {"optim": 3}, "optim: 3"),
        (TrainConfig, {"optim": {"lr": "fast"}}, "optim.lr: 'fast'"),
        (TrainConfig, {"data": {"mean": [0.1, 0.2]}}, r"data.mean: \[0.1, 0.2\] must be a list of 3"),
        (TrainConfig, {"loss": {"name": "bc"}}, "loss.name 'bc': did you mean bce"),
        (Record, {"part": {"sides": [1, 2]}}, "part.side: missing"),
        (Record, {"part": {"side": 0}}, "part.side: 0"),
        (Record, {"part": {"sides": [1, "2"]}}, "part.side"),
        (Record, {"parts": [{"side": 1, "x": 1}]}, "parts.x"),
        (Record, [], "Record"),
        (Record, {1: 2}, "field '1'"),
    ],
)
def test_fields_inside_are_named_with_dots(kind: type[Any], values: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(kind, values)


def test_differences_are_named_with_both_values() -> None:
    old = TrainConfig()
    new = replace(old, optim=replace(old.optim, lr=0.5), seed=7)
    assert differences(to_dict(old), to_dict(new)) == ["optim.lr: 0.001 → 0.5", "seed: 42 → 7"]
    assert differences(to_dict(old), json.loads(json.dumps(to_dict(old)))) == []
