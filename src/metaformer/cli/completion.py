"""`metaformer --print-completion SHELL`: commands, options and names at a press of Tab.

The script holds all that it offers: to ask Python at each Tab would take seconds, since PyTorch is imported.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import is_dataclass
from io import StringIO
from pathlib import Path
from shlex import quote
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from docstring_parser import parse_from_object

from metaformer.cli.data import SUBCOMMANDS
from metaformer.cli.parser import HelpPrinted, UsageError
from metaformer.cli.train import add_own
from metaformer.config import TrainConfig
from metaformer.errors import MissingPackage
from metaformer.recipes import RECIPES, find
from metaformer.serialize import field_types

Run = Callable[[list[str]], int]
SHELLS: Final = ("bash", "zsh")
MODELS: Final = ("source", "models", "name", "model", "model.name", "filter", "against")
"""Arguments that take the name of a model, or a file."""
MIXERS: Final = ("mixer", "mixers", "model.mixers")
"""Arguments that take the name of a mixer, or a file."""


def completion(shell: str, commands: Mapping[str, tuple[str, Run]]) -> str:
    """A shell's script of completion.

    Args:
        shell: one of `SHELLS`.
        commands: help and function of each command by name.

    Raises:
        UsageError: another shell.
        MissingPackage: shtab is not there.
    """
    if shell not in SHELLS:
        raise UsageError(f"--print-completion{shell and f' {shell}'}: name a shell, {' or '.join(SHELLS)}")
    try:
        import shtab
    except ImportError as error:
        raise MissingPackage("shtab", "completion", "shell completion") from error
    names = _completers()
    root = argparse.ArgumentParser("metaformer")
    root.add_argument("-V", "--version", action="version", help="print the version")
    root.add_argument("--print-completion", choices=SHELLS, help="print a script of shell completion")
    add_command = root.add_subparsers().add_parser
    for name, (text, run) in commands.items():
        if name == "data":
            add_subcommand = add_command(name, help=text).add_subparsers().add_parser
            for what, (about, subcommand) in SUBCOMMANDS.items():
                parser = _offer(_parser_of(subcommand), names)
                add_subcommand(what, help=about, parents=[parser], add_help=False)
        else:
            parser = _train() if name == "train" else _parser_of(run)
            add_command(name, help=text, parents=[_offer(parser, names)], add_help=False)
    return str(shtab.complete(root, shell))


def _parser_of(run: Run) -> argparse.ArgumentParser:
    """The parser of a command, which its help is printed from."""
    try:
        with redirect_stdout(StringIO()):
            run(["--help"])
    except HelpPrinted as done:
        return done.parser
    raise AssertionError(f"{run.__module__}: prints no help")


def _train() -> argparse.ArgumentParser:
    """The options of a training, without their reading of values."""
    parser = argparse.ArgumentParser("train")
    parser.add_argument("recipe", choices=list(RECIPES), help="whose settings to train with")
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="file with fields to change")
    add_own(parser, find("finetune"))
    parser.add_argument("--print_config", action="store_true", help="print the settings as YAML")
    for name, hint, text in _fields(TrainConfig):
        kind = Path if str in _leaves(hint) else float  # text may name a file
        parser.add_argument(f"--{name}", type=kind, choices=_choices(hint), help=text.replace("%", "%%"))
    return parser


def _fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted name, type and description of each field."""
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(kind).params}
    for name, hint in field_types(kind).items():
        if is_dataclass(hint):
            yield from _fields(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint, texts.get(name, "")


def _choices(hint: Any) -> list[str] | None:
    """The values of a type, where they are few."""
    values = {bool: ["true", "false"]}
    found = [
        value
        for leaf in _leaves(hint)
        for value in (map(str, get_args(leaf)) if get_origin(leaf) is Literal else values.get(leaf, ()))
    ]
    return found or None


def _leaves(hint: Any) -> list[Any]:
    """The types of a union, without their ranges."""
    if get_origin(hint) is Annotated:
        return _leaves(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [leaf for one in get_args(hint) for leaf in _leaves(one)]
    return [hint]


def _offer(parser: argparse.ArgumentParser, names: Mapping[str, Any]) -> argparse.ArgumentParser:
    """A parser whose arguments know what shtab is to offer for them."""
    import shtab

    for action in parser._actions:
        if action.dest in names:
            action.complete = names[action.dest]  # type: ignore[attr-defined]
        elif action.nargs != 0 and not action.choices and action.type in (None, Path):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _completers() -> dict[str, Any]:
    """What shtab offers for an argument by its name: files, and names of models or mixers."""
    from metaformer.backbones.variants import VARIANTS
    from metaformer.mixers import MIXERS as REGISTRY
    from metaformer.weights.sources import SOURCES

    models, mixers = _files_or("model", [*VARIANTS, *SOURCES]), _files_or("mixer", REGISTRY)
    return dict.fromkeys(MODELS, models) | dict.fromkeys(MIXERS, mixers)


def _files_or(kind: str, names: Iterable[str]) -> dict[str, Any]:
    """Files, and these names."""
    words, function = " ".join(names), f"_metaformer_{kind}_or_file"
    script = f'{function}() {{\n  compgen -f -- "$1"\n  compgen -W {quote(words)} -- "$1"\n}}'
    return {"bash": function, "zsh": f"{{_files; compadd -- {words}}}", "preamble": {"bash": script}}
