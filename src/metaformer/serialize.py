"""A run's configuration to JSON and back."""

import math
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, UnknownName

T = TypeVar("T")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values, as saved in JSON."""
    return asdict(config)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """Read what `to_dict` gave; fields left out keep their defaults.

    Raises:
        UnknownName: a field that this version does not know.
        ConfigError: a value of another type.
    """
    return _read(TrainConfig, values, "")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted fields in which two configurations differ, each with both values."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{name}.")
        elif _plain(before) != _plain(after):
            lines.append(f"{prefix}{name}: {before!r} → {after!r}")
    return lines


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read(kind: type[T], values: Any, prefix: str) -> T:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'configuration'}: {values!r} must be a mapping of fields")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UnknownName("field", f"{prefix}{name}", [f"{prefix}{field}" for field in known])
    return kind(**{name: _value(hints[name], value, f"{prefix}{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return _read(hint, value, f"{name}.")  # type: ignore[arg-type]
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for choice in choices:
        fits, read = _fit(choice, value)
        if fits:
            return read
    wanted = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    if get_origin(hint) is Literal:
        wanted = "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    raise ConfigError(f"{name}: {value!r} must be {wanted}")


def _fit(hint: Any, value: Any) -> tuple[bool, Any]:
    """Tell whether a JSON value can stand for this type, and what it then is."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint), value
    if origin is tuple:
        items = get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(items):
            return False, None
        parts = [_fit(item, part) for item, part in zip(items, value, strict=True)]
        return all(fits for fits, _ in parts), tuple(part for _, part in parts)
    if origin in (list, dict):
        return isinstance(value, origin), value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number, float(value) if number else None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, hint), value


class Range(NamedTuple):
    """Interval of finite numbers."""

    low: float
    high: float = math.inf
    above: bool = False
    """Exclude `low` itself."""
    below: bool = False
    """Exclude `high` itself."""
    integer: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int if self.integer else int | float) or not math.isfinite(value):
            return False
        high = value < self.high if self.below else value <= self.high
        return high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        """Words for an error message, such as `above 0 and at most 1`."""
        low = f"{'above' if self.above else 'at least'} {self.low}"
        high = "" if math.isinf(self.high) else f" and {'below' if self.below else 'at most'} {self.high}"
        return f"{'an integer of ' if self.integer else ''}{low}{high}"


POSITIVE_INT: Final = Range(1, integer=True)
NATURAL: Final = Range(0, integer=True)
POSITIVE: Final = Range(0, above=True)
NON_NEGATIVE: Final = Range(0)
PROBABILITY: Final = Range(0, 1)


def check_ranges(config: object, ranges: Mapping[str, Range]) -> None:
    """Check dotted fields, and each item of a list or tuple; None passes.

    Raises:
        ConfigError: the first value out of range.
    """
    for name, allowed in ranges.items():
        value = attrgetter(name)(config)
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None and item not in allowed:
                raise ConfigError(f"{name} is {item}: it must be {allowed}")
