"""Options made from signatures and docstrings."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from metaformer.cli.options import accepts, add_options, options_of
from metaformer.cli.parser import Parser, UsageError


def evaluate(
    data: str,
    *,
    flip: bool = False,
    crops: int = 5,
    score: float | None = None,
    names: str | Path | Sequence[str] | None = None,
    layout: Literal["coco", "voc"] = "coco",
    scales: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Evaluate.

    Args:
        data: no option.
        flip: average views.
        crops: number of crops.
        score: 50 % or
            more, with `flip`.
        names: file of names.
        layout: files on disk.
        scales: factors, such as 1,2 (default: one).
        classes: names.
    """


def other(*, layout: Literal["voc", "yolo"] = "voc", top_k: int = 1) -> None:
    """Another.

    Args:
        layout: files.
        top_k: classes.
    """


def parse(function: Callable[..., Any], *args: str, **options: Any) -> dict[str, Any]:
    parser = Parser("evaluate", "", "")
    add_options(parser, list(options_of(function)), **options)
    return vars(parser.parse_args(list(args)))


def test_defaults_are_those_of_the_signature() -> None:
    options: dict[str, Any] = {
        "flip": False, "crops": 5, "score": None, "names": None, "layout": "coco", "scales": None,
        "classes": None,
    }  # fmt: skip
    assert parse(evaluate) == options
    assert parse(evaluate, given_only=True) == {}


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["--flip"], "flip", True),
        (["--crops", "3"], "crops", 3),
        (["--score=.5"], "score", 0.5),
        (["--names", "a.txt"], "names", Path("a.txt")),
        (["--layout", "voc"], "layout", "voc"),
        (["--scales", "0.5,1"], "scales", [0.5, 1.0]),
        (["--classes", "hot dog, cat"], "classes", ["hot dog", "cat"]),
    ],
)
def test_values_have_the_types_of_the_signature(args: list[str], name: str, value: Any) -> None:
    assert parse(evaluate, *args, given_only=True) == {name: value}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--crops", "five"], "--crops.*'five'"),
        (["--score", "much"], "--score.*'much'"),
        (["--scales", "a,b"], "--scales 'a,b'"),
        (["--scales", ""], "--scales ''"),
        (["--classes", "cat,,dog"], "--classes 'cat,,dog'"),
        (["--layout", "coca"], "--layout.*'coca'.*voc"),
        (["--flipp"], "--flipp: did you mean --flip"),
        (["--crop", "3"], "--crop: did you mean --crops"),
        (["--flip", "yes"], "'yes'"),
        (["--crops"], "--crops"),
    ],
)
def test_wrong_values_and_options_are_named(args: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse(evaluate, *args)


def test_help_is_the_docstring() -> None:
    parser = Parser("evaluate", "", "")
    add_options(parser, list(options_of(evaluate)))
    text = " ".join(parser.format_help().split())
    assert "--crops N number of crops (default 5)" in text
    assert "--score X 50 % or more, with --flip --names PATH file of names" in text
    assert "such as 1,2 (default: one) --classes" in text


def test_the_same_option_of_several_functions_is_one() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, [*options_of(evaluate), *options_of(other, skip=["top_k"])])
    values = vars(parser.parse_args(["--layout", "yolo"]))
    assert values["layout"] == "yolo" and "top_k" not in values
    assert accepts(other, {"layout": "yolo", "top_k": 3})
    assert not accepts(evaluate, {"layout": "yolo"}) and not accepts(evaluate, {"top_k": 3})


def test_arguments_need_a_description_and_a_known_type() -> None:
    def undocumented(*, size: int = 1) -> None:
        """No arguments."""

    def untyped(*, size: dict[str, int] | None = None) -> None:
        """Wrong type.

        Args:
            size: a mapping.
        """

    for function in (undocumented, untyped):
        with pytest.raises(AssertionError):
            list(options_of(function))
