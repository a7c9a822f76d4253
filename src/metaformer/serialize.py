"""Dataclasses to plain JSON values and back, checked by type and range; errors name the field.

What a file or a server holds is decoded here, once: `parse_json` bounds its depth, `decode` types and ranges.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import islice
from numbers import Integral, Real
from operator import attrgetter
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from metaformer.errors import ConfigError, DataError, MetaFormerError, UnknownName

T = TypeVar("T")
DEPTH: Final = 64
"""Levels of nesting that a JSON document may have."""
_YAML_DEPTH = 20
_SHOWN = 100  # characters of a value in an error
_DIGITS = 50  # of an integer in an error
_BITS = 63  # of an integer, besides its sign


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
        if not isinstance(value, int if self.integer else int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):  # of 10**400 Python cannot tell
            return False
        high = value < self.high if self.below else value <= self.high
        return high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        """Words for an error message, such as `a number above 0 and at most 1`."""
        kind = "an integer" if self.integer else "a number"
        if not (self.above or self.below or math.isinf(self.high)):
            return f"{kind} from {self.low} to {self.high}"
        low = f"{kind} {'above' if self.above else 'of at least'} {self.low}"
        return (
            low if math.isinf(self.high) else f"{low} and {'below' if self.below else 'at most'} {self.high}"
        )


POSITIVE_INT: Final = Range(1, integer=True)
NATURAL: Final = Range(0, integer=True)
POSITIVE: Final = Range(0, above=True)
NON_NEGATIVE: Final = Range(0)
PROBABILITY: Final = Range(0, 1)
Probability = Annotated[float, PROBABILITY]


@dataclass(frozen=True)
class OneOf:
    """Known values of a string, as in `Annotated[str, OneOf(KINDS)]`."""

    names: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.names))}"


class Odd:
    """Positive odd integers, such as kernels that keep the size of their input."""

    def __contains__(self, value: object) -> bool:
        return value in POSITIVE_INT and bool(value % 2)

    def __str__(self) -> str:
        return "an odd integer of at least 1"


ODD: Final = Odd()


class Line:
    """Text that fits a line: no control characters, no line breaks, nothing that UTF-8 cannot hold.

    Args:
        longest: characters that it may have.
    """

    _BROKEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

    def __init__(self, longest: int = 1000) -> None:
        self.longest = longest

    def __contains__(self, text: str) -> bool:
        return len(text) <= self.longest and self._BROKEN.search(text) is None

    def __str__(self) -> str:
        return f"one line of at most {self.longest:,} characters, without control characters"


class Short:
    """A list of at most so many items.

    Args:
        most: their number.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __contains__(self, values: Any) -> bool:
        return len(values) <= self.most

    def __str__(self) -> str:
        return f"a list of at most {self.most:,}"


class Number:
    """A number, finite or not, as an evaluation may give it."""

    def __contains__(self, value: object) -> bool:
        if isinstance(value, int) and value.bit_length() > _BITS:
            return False
        return isinstance(value, int | float) and not isinstance(value, bool)

    def __str__(self) -> str:
        return "a number"


NUMBER: Final = Number()
LINE: Final = Line()
Text = Annotated[str, LINE]
"""Text of one line, such as a name that is printed."""


class Serializable:
    """Base of frozen dataclasses that are checked by type and range, and saved as JSON."""

    def __post_init__(self) -> None:
        validate(self)

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain JSON values."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; missing fields have their defaults.

        Raises:
            UnknownName: an unknown field or choice; the nearest ones are offered.
            ConfigError: a value of another type or out of range; it names the field.
        """
        return from_dict(cls, values)


class _Mismatch(Exception):
    """A value that is not of the type that a field declares."""


def to_dict(record: Any) -> dict[str, Any]:
    """Fields of a dataclass as plain JSON values; tuples become lists."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with some replaced, section by section."""
    result = dict(values)
    for name, value in changes.items():
        before = values.get(name)
        both = isinstance(value, Mapping) and isinstance(before, dict)
        result[name] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def decode(hint: Any, value: Any, name: str = "value") -> Any:
    """A plain value as a type has it, such as `tuple[Text, ...]`, `Annotated[int, NATURAL]` or a dataclass.

    Lists become tuples where the type says so, numbers must be finite and in range.

    Args:
        hint: the type.
        value: what a file or a caller gave.
        name: of the value, for errors.

    Raises:
        UnknownName: an unknown field or choice; the nearest ones are offered.
        ConfigError: a value of another type or out of range; it names the field.
    """
    return _read(hint, value, name)


def parse_json(
    text: str | bytes,
    where: object,
    error: type[MetaFormerError] = DataError,
    *,
    depth: int = DEPTH,
    hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Plain values of a JSON document.

    Args:
        text: the document; bytes are UTF-8, perhaps with a byte order mark.
        where: its file, for errors.
        error: class of the errors.
        depth: levels of nesting that it may have.
        hook: called with each object, whose place its result takes.

    Raises:
        MetaFormerError: of class `error`: it is no JSON, or nested deeper.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        values = json.loads(text, object_hook=hook)
    except UnicodeDecodeError as failure:
        raise error(f"{where}: is not UTF-8 text ({failure.reason} at byte {failure.start:,})") from failure
    except RecursionError as failure:
        raise error(f"{where}: cannot be read as JSON (nested more than {depth} levels deep)") from failure
    except ValueError as failure:  # also of a number with more digits than Python reads
        raise error(f"{where}: cannot be read as JSON ({shown(str(failure), quote=False)})") from failure
    if hook is None and _deeper(values, depth):
        raise error(f"{where}: cannot be read as JSON (nested more than {depth} levels deep)")
    return values


def parse_yaml(
    text: str, where: object, error: type[MetaFormerError] = DataError, *, depth: int = _YAML_DEPTH
) -> Any:
    """Plain values of a YAML document; see `check_yaml`.

    Raises:
        MetaFormerError: of class `error`: it is no YAML, or one that `check_yaml` refuses.
    """
    import yaml

    try:
        check_yaml(text, where, error, depth=depth)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as failure:
        if isinstance(failure, MetaFormerError):
            raise
        raise error(f"{where}: cannot be read as YAML ({' '.join(str(failure).split()):.200})") from failure


def check_yaml(
    text: str, where: object, error: type[MetaFormerError] = ConfigError, *, depth: int = _YAML_DEPTH
) -> None:
    """Refuse YAML that nobody writes by hand and that could exhaust a parser.

    Raises:
        MetaFormerError: of class `error`: it is nested too deeply, uses aliases, or names a field twice.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    level = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # one after another, without recursion
        line = f"{where}, {_line_of(event)}"
        if isinstance(event, yaml.AliasEvent):
            raise error(f"{line}: aliases (*{event.anchor}) are not read: write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
            if level > depth:
                raise error(f"{line}: nested more than {depth} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1
    for key in _repeated(yaml.compose(text, Loader=yaml.SafeLoader)):
        raise error(f"{where}, {_line_of(key)}: {shown(str(key.value), quote=False)} is given a second time")


def _line_of(part: Any) -> str:
    return f"line {part.start_mark.line + 1}" if part.start_mark is not None else "somewhere"


def _repeated(node: Any) -> Iterator[Any]:
    """Keys of YAML mappings that stand there twice."""
    if node is None:
        return
    if node.id == "mapping":
        names: set[str] = set()
        for key, value in node.value:
            name = str(key.value)  # keys that are no strings are left to the parser
            if name in names:
                yield key
            names.add(name)
            yield from _repeated(value)
    elif node.id == "sequence":
        for item in node.value:
            yield from _repeated(item)


def _deeper(values: Any, depth: int) -> bool:
    """Whether plain values are nested more than so many levels."""
    level = [values]
    for _ in range(depth + 1):
        level = [
            item
            for part in level
            if isinstance(part, list | dict)
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, list | dict)
        ]
        if not level:
            return False
    return True


@contextmanager
def errors_at(where: object, error: type[MetaFormerError] = ConfigError) -> Iterator[None]:
    """Let errors of decoding name the file, and be of another class where one is given."""
    try:
        yield
    except ConfigError as failure:
        if error is not ConfigError:
            raise error(f"{where}: {failure}") from failure
        failure.args = (f"{where}: {failure}",)
        raise


class Fields(dict[str, Any]):
    """Plain values of a file by name; a missing one is an error that names the file.

    Args:
        values: the values.
        where: their file, for errors.
        error: class of the error.
    """

    def __init__(self, values: Mapping[str, Any], where: object, error: type[MetaFormerError]) -> None:
        super().__init__(values)
        self.where, self.error = where, error

    def __missing__(self, name: str) -> Any:
        raise self.error(f"{self.where}: lacks {name!r}")

    @classmethod
    def read(
        cls,
        values: Any,
        types: Mapping[str, Any],
        where: object,
        error: type[MetaFormerError],
        others: Any = Any,
    ) -> Self:
        """Decode the values of a file.

        Args:
            values: what the file holds.
            types: of the values by name; none of them must be there.
            where: the file, for errors.
            error: class of the errors.
            others: type of values that have no type in `types`.

        Raises:
            MetaFormerError: of class `error`: it holds no object, or a value of another type.
        """
        with errors_at(where, error):
            known = {
                name: decode(types.get(name, others), value, shown(name, quote=False))
                for name, value in decode(dict[str, Any], values, "the file").items()
            }
        return cls(known, where, error)


def from_dict(kind: type[T], values: Any, name: str = "", *, others: bool = False) -> T:
    """Dataclass from the values of `to_dict`; missing fields have their defaults.

    Args:
        kind: the dataclass.
        values: its fields by name.
        name: of the field that holds it, for errors.
        others: leave out keys that are no fields, as other programs may write them.

    Raises:
        UnknownName: an unknown field or choice; the nearest ones are offered.
        ConfigError: a value of another type or out of range, or a missing field; it names the field.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name or kind.__name__}: {shown(values)} must be a mapping of fields")
    record: Any = kind
    hints, prefix = field_types(record), f"{name}." if name else ""
    if others:
        values = {key: value for key, value in values.items() if key in hints}
    for key in values:
        if key not in hints:
            text = shown(str(key), quote=False)
            raise UnknownName("field", f"{prefix}{text}", [f"{prefix}{field}" for field in hints])
    for field in fields(record):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{prefix}{field.name}: missing")
    built: T = record(**{key: _read(hints[key], value, f"{prefix}{key}") for key, value in values.items()})
    return built


def validate(record: Any) -> None:
    """Check the fields of a frozen dataclass against their types, in `__post_init__`; lists become tuples.

    Raises:
        UnknownName: an unknown choice; the nearest ones are offered.
        ConfigError: a value of another type or out of range; it names the field.
    """
    kind: Any = type(record)
    for name, hint in field_types(kind).items():
        object.__setattr__(record, name, _read(hint, getattr(record, name), name))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted fields in which two records of `to_dict` differ, each with both values."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif _plain(before) != _plain(after):
            lines.append(f"{prefix}{name}: {before!r} → {after!r}")
    return lines


def check_ranges(config: object, ranges: Mapping[str, Container[Any]]) -> None:
    """Check dotted fields of a dataclass whose types have no ranges, and each item of a list; None passes.

    Raises:
        ConfigError: the first value out of range.
    """
    for name, allowed in ranges.items():
        value = attrgetter(name)(config)
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None:
                check_value(name, item, allowed)


def check_value(name: str, value: object, allowed: Container[Any]) -> None:
    """Check a value by a range, or another of the kinds above.

    Raises:
        ConfigError: the value is not in it; `name` is what it is called there.
    """
    if value not in allowed:
        raise ConfigError(f"{name}: {shown(value)} must be {allowed}")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, with their ranges."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _read(hint: Any, value: Any, name: str) -> Any:
    """A field's value, checked.

    Raises:
        ConfigError: it is not of this type.
    """
    try:
        return _convert(hint, value, name)
    except _Mismatch:
        known = _names(hint)
        if known and isinstance(value, str):
            raise UnknownName(name, value, known) from None
        reason = f"must be {_describe(hint)}"
        if isinstance(value, str) and not is_text(value):
            reason = "holds characters that UTF-8 text cannot have"
        elif hint is int and isinstance(value, int) and value.bit_length() > _BITS:
            reason = f"must have at most {_BITS} bits"
        raise ConfigError(f"{name}: {shown(value)} {reason}") from None


def _convert(hint: Any, value: Any, name: str) -> Any:
    """A value as this type has it; a dataclass is built from a mapping."""
    origin = get_origin(hint)
    if origin is not None:
        return _convert_generic(origin, get_args(hint), value, name)
    if hint in (int, float):
        _require(isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool))
        _require(hint is int or abs(value) <= sys.float_info.max)  # false for NaN
        number = hint(value)
        _require(hint is float or number.bit_length() <= _BITS)
        return number
    if is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, name)  # type: ignore[arg-type]
    _require(hint is Any or isinstance(value, hint))
    _require(hint is not str or is_text(value))
    return value


def _convert_generic(origin: Any, args: tuple[Any, ...], value: Any, name: str) -> Any:
    """The same for a type with arguments."""
    if origin in (tuple, list):
        _require(isinstance(value, list | tuple))
        hints = args[:1] * len(value) if origin is list or args[-1] is Ellipsis else args
        _require(len(hints) == len(value))
        return origin(_convert(hint, item, name) for hint, item in zip(hints, value, strict=True))
    if origin is dict:
        _require(isinstance(value, Mapping))
        return {_convert(args[0], key, name): _convert(args[1], item, name) for key, item in value.items()}
    if origin in (Union, UnionType):
        for hint in args:
            with suppress(_Mismatch):
                return _convert(hint, value, name)
        raise _Mismatch
    if origin is Annotated:
        value = _convert(args[0], value, name)
        _require(all(value in limit for limit in args[1:]))
    elif origin is Literal:
        _require(any(type(value) is type(choice) and value == choice for choice in args))
    else:
        _require(origin is Callable and callable(value))
    return value


def _require(holds: bool) -> None:
    if not holds:
        raise _Mismatch


_WORDS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    NoneType: "null",
}


def _describe(hint: Any) -> str:
    """Description of the values of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " and ".join(map(str, args[1:]))
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, args))
    if origin is Literal:
        return str(OneOf(args))
    if origin is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)}, each {' or '.join(dict.fromkeys(map(_describe, args)))}"
    if origin in (tuple, list):
        return f"a list, each {_describe(args[0])}"
    if origin is dict or is_dataclass(hint):
        return "a mapping of fields"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _names(hint: Any) -> tuple[str, ...]:
    """The strings that a field takes, where it takes nothing but some strings."""
    if get_origin(hint) is Annotated:
        return next((limit.names for limit in get_args(hint)[1:] if isinstance(limit, OneOf)), ())
    names = get_args(hint) if get_origin(hint) is Literal else ()
    return names if all(isinstance(name, str) for name in names) else ()


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: lone surrogates, which JSON can hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any, *, quote: bool = True) -> str:
    """A value in an error message: one line of at most 100 characters, whatever the value is."""
    text = _brief(value) if quote else "".join(c if c in LINE else repr(c)[1:-1] for c in value[:_SHOWN])
    long = len(text) > _SHOWN or (not quote and len(value) > _SHOWN)
    return f"{text[:_SHOWN]} …" if long else text


def _brief(value: Any, levels: int = 3) -> str:
    """`repr` without its recursion, and without the digits of huge numbers."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 3.3 * _DIGITS:
        return f"an integer of about {value.bit_length() * 0.30103:,.0f} digits"
    if type(value) in (list, tuple, dict):
        left, right = "{}" if type(value) is dict else "()" if type(value) is tuple else "[]"
        if not levels:
            return f"{left}…{right}"
        rows = list(islice(value.items() if type(value) is dict else value, 8))
        parts = [
            f"{_brief(row[0], 0)}: {_brief(row[1], levels - 1)}"
            if type(value) is dict
            else _brief(row, levels - 1)
            for row in rows
        ]
        parts += ["…"] * (len(value) > len(rows))
        return left + ", ".join(parts) + ("," if type(value) is tuple and len(value) == 1 else "") + right
    return repr(value[: 2 * _SHOWN] if isinstance(value, str | bytes) else value)
