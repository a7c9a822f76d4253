"""Command-line options made from the signatures and docstrings of the functions that take them."""

import argparse
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from metaformer.cli.parser import Parser, UsageError, numbers

METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Option(NamedTuple):
    """A keyword argument as an option."""

    name: str
    kind: Any
    """Its type: bool, int, float, str, Path, a tuple of choices, `list[float]`, `list[str]` or a pair,
    `tuple[int, int]`."""
    default: Any
    help: str


def options_of(function: Callable[..., Any], skip: Collection[str] = ()) -> Iterator[Option]:
    """Options for the keyword-only arguments of a function or class.

    Raises:
        AssertionError: an argument of a type that no option stands for, or without documentation.
    """
    called: Any = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(called)
    texts = {
        p.arg_name: " ".join((p.description or "").split()) for p in parse(function.__doc__ or "").params
    }
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in skip:
            text = texts.get(parameter.name)
            assert text, f"{function.__qualname__}: {parameter.name} is not documented"
            yield Option(parameter.name, _kind(hints[parameter.name]), parameter.default, text)


def accepts(function: Callable[..., Any], values: dict[str, Any]) -> bool:
    """Whether a function has all of these options, and each value is among its choices."""
    own = {option.name: option for option in options_of(function)}
    return all(
        name in own and not (isinstance(own[name].kind, tuple) and value not in own[name].kind)
        for name, value in values.items()
    )


def add_options(
    parser: Any, options: Sequence[Option], given_only: bool = False, others: Collection[str] = ()
) -> None:
    """Add options to a parser or to a group of it; the same option of several functions once.

    Args:
        parser: of argparse.
        options: what to add.
        given_only: leave out of the result what is not given, so that the function's default holds.
        others: names of further options that help texts may mention.
    """
    merged: dict[str, Option] = {}
    for option in options:
        other = merged.get(option.name)
        if other is not None and isinstance(option.kind, tuple) and isinstance(other.kind, tuple):
            option = other._replace(kind=tuple(dict.fromkeys((*other.kind, *option.kind))))
        elif other is not None:
            option = other
        merged[option.name] = option
    for name, kind, default, text in merged.values():
        flag, shown = _flag(name), _help(text, {*merged, *others})
        if default not in (None, False) and "(default" not in shown:
            value = " ".join(map(str, default)) if isinstance(default, tuple) else default
            shown += f" (default {value})"
        common = {"help": shown, "default": argparse.SUPPRESS if given_only else default}
        parser.add_argument(flag, **_form(kind, flag), **common)


def _form(kind: Any, flag: str) -> dict[str, Any]:
    """How argparse reads an option's type."""
    if kind is bool:
        return {"action": "store_true"}
    if isinstance(kind, tuple):
        return {"choices": kind}
    if kind == list[float]:
        return {"type": lambda value: numbers(value, flag), "metavar": "X,X,…"}
    if kind == list[str]:
        return {"type": lambda value: _names(value, flag), "metavar": "NAME,NAME,…"}
    if kind == tuple[int, int]:
        return {"type": int, "nargs": 2, "metavar": "N"}
    return {"type": kind, "metavar": METAVARS[kind]}


def add_task_options(parser: Parser, *fields: str, served: bool = False) -> None:
    """Add the options of all tasks, in groups by the tasks that take them.

    Args:
        parser: gets the groups.
        fields: fields of `TaskSpec` whose functions take the options, such as `evaluation`.
        served: show the defaults of the server, where a task has others there.
    """
    from metaformer.inference.evaluate import COMMON, task_options
    from metaformer.tasks import TASKS

    groups: dict[tuple[str, ...], list[Option]] = {}
    for field in fields:
        takers = task_options(field)
        for spec in TASKS.values():
            for option in options_of(getattr(spec, field), skip=COMMON):
                titles = tuple(taker.title for taker in takers[option.name])
                if served:
                    option = option._replace(default=spec.served.get(option.name, option.default))
                groups.setdefault(titles, []).append(option)
    names = {option.name for found in groups.values() for option in found}
    for titles, found in sorted(groups.items(), key=lambda group: -len(group[0])):
        add_options(parser.add_argument_group(", ".join(titles)), found, given_only=True, others=names)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _help(text: str, options: Collection[str]) -> str:
    """Help text of a description, in which other options are called by their flags."""
    text = re.sub(r"`(\w+)`", lambda found: _flag(found[1]) if found[1] in options else found[0], text)
    return text.rstrip(".").replace("%", "%%")


def _names(text: str, flag: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"{flag} {text!r}: write names with commas between")
    return names


def _kind(hint: Any) -> Any:
    """The option's type that stands for a type hint."""
    choices = [one for one in _choices(hint) if one is not type(None)]
    for one in choices:
        if get_origin(one) is Literal:
            return get_args(one)
    if Path in choices:
        return Path
    if tuple[int, int] in choices:
        return tuple[int, int]
    for one in choices:
        if one in METAVARS or one is bool:
            return one
    for one in choices:
        if get_origin(one) in (Sequence, list, tuple) and get_args(one)[:1] in ((float,), (str,)):
            return list[get_args(one)[0]]  # type: ignore[misc]
    raise AssertionError(f"no option stands for {hint}")


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
