"""Argument parser whose errors are one line."""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from metaformer.process import printable


class UsageError(Exception):
    """A command line that cannot be understood."""


class HelpPrinted(SystemExit):
    """The help of a command was printed.

    Args:
        parser: that of the command.
    """

    def __init__(self, parser: "Parser") -> None:
        super().__init__(0)
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """argparse, but errors are raised as UsageError, with the nearest options where one is unknown."""

    def __init__(
        self, command: str, description: str, example: str, add_help: bool = True, program: str = "metaformer"
    ) -> None:
        super().__init__(
            f"{program} {command}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError in place of printing and exiting."""
        command = self.prog.rpartition("metaformer ")[2]
        raise UsageError(f"{command}: {explain(message, re.findall(r'--[a-z-]+', self.format_usage()))}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End, since the help was printed."""
        raise HelpPrinted(self)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, of which options may also stand between and before the others."""
        return self.parse_intermixed_args(args, namespace)

    def add_source(self) -> None:
        """Add the network: a run, a checkpoint or a model by name."""
        kinds = "run, checkpoint or save_pretrained directory, or model name"
        self.add_argument("source", metavar="RUN|CHECKPOINT|MODEL", help=kinds)
        weights = "weights for a model name, in any published format"
        self.add_argument("--checkpoint", metavar="FILE", help=weights)

    def add_ema(self) -> None:
        """Add the options that choose between raw and averaged weights."""
        only = self.add_mutually_exclusive_group()
        text = "of a file with raw and averaged weights, take the"
        only.add_argument("--ema", action="store_true", help=f"{text} averaged ones")
        only.add_argument("--raw", action="store_true", help=f"{text} raw ones")

    def add_import(self) -> None:
        """Add the option that names a user's own mixers."""
        add_import(self)

    def run_import(self, args: Mapping[str, Any]) -> None:
        """Run the files that were named.

        Raises:
            ConfigError: no such file, or an error in it.
        """
        from metaformer.registry import import_files

        import_files(args["import_files"])

    def add_json(self) -> None:
        """Add the option that writes the result as JSON."""
        self.add_argument("--json", type=Path, metavar="FILE", help="write the result there as JSON")


def add_import(parser: Any) -> None:
    """Add the option that names files with a user's own mixers to a parser of argparse."""
    parser.add_argument(
        "--import",
        dest="import_files",
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this file first: it may register own mixers; give it several times for several files",
    )


def say(text: str) -> None:
    """Print a result; where nobody reads any more, as after `| head`, the command goes on without."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        drop_stdout()


def say_step(command: str) -> Callable[[str], None]:
    """What prints a command's steps on standard error."""
    return lambda step: print(f"{command}: {step}", file=sys.stderr, flush=True)


def drop_stdout() -> None:
    """Send what is still printed to nowhere: at exit, it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a result as a JSON file.

    Raises:
        OutputError: it cannot be written.
    """
    from metaformer.storage import write_text

    text = json.dumps(value, indent=1) + "\n"
    write_text(path, text)


IN_OPTIONS: Final = {
    r"\b\w+=\w*, (--[a-z])": r"\1",  # as in (checkpoint_path=, --checkpoint)
    r"build the model with num_classes=(\d+), or pass classifier='reset' to train a new one": (
        r"name its \1 classes (--class-names), or train a new one (metaformer train finetune)"
    ),
    r"\s*strict=False loads what fits": "",  # no command does
    r"Build the model with the image_size of the file .* to load_weights": (
        "train it for the other size (metaformer train finetune --model.checkpoint), which resamples them"
    ),
    r"set grid_mode='interpolate'": "train with --model.overrides '{grid_mode: interpolate}'",
}
"""What errors say of arguments in Python, and what a command says in its place."""


def in_options(message: str, args: Iterable[str] = ()) -> str:
    """An error's text that names options where it has arguments in Python.

    Args:
        message: the text.
        args: the command line, whose options are named as they stand there.
    """
    for pattern, option in IN_OPTIONS.items():
        message = re.sub(pattern, option, message)
    for flag in {arg.partition("=")[0] for arg in args if arg.startswith("--")}:
        name = flag[2:].replace("-", "_")
        if name.isidentifier():  # with an underscore it is no word of a sentence
            place = r"(?<![\w./-]){}(?![\w/=-])" if "_" in name else "^{}(?=: | is )"
            message = re.sub(place.format(name), flag, message)
    return message


def explain(message: str, known: Iterable[str]) -> str:
    """Message of argparse or jsonargparse in one line, with the nearest of the known options."""
    message = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: (-[^\s=]+)", message):
        return f"unknown option {found[1]}{_near(found[1], known)}"
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        return f"unexpected argument {found[1]!r}"
    if found := re.search(r"Group '(.+)' does not accept option '(.+)'", message):
        name = f"{found[1]}.{found[2]}"
        return f"unknown field {name}{_near('--' + name, known)}"
    if found := re.search(r"Option '(.+)' is not accepted", message):
        return f"unknown field {found[1]}{_near('--' + found[1], known)}"
    if "Problems parsing config: " in message:
        return message.partition("config: ")[2].replace('in "<unicode string>", ', "")
    if message.startswith("Unexpected config:"):
        return "must hold fields, as --print_config writes them"
    if found := re.search(r'Parser key "(.+?)": (.+)', message):
        return f"{found[1]}: {_types(found[2])}"
    return message


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(set(known))
    fields = [one for one in names if one.endswith(f".{name.lstrip('-')}")]  # --lr for --optim.lr
    close = fields[:3] or difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f": did you mean {' or '.join(close)}?" if close else ""


def _types(text: str) -> str:
    """Types without Python's notation."""
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.+?)\]", r"one of \1", text)
    if union := re.search(r"[Uu]nion.*?Got value: (\S+)", text):
        wanted = dict.fromkeys(re.findall(r"Expected an? (.+?)\. Got value", text))
        return f"expected {' or '.join(wanted) or 'another type'}, got {union[1]}"
    if union := re.search(r"Union subtypes.*Errors: (.+?) Given value type: \S+ Given value: (.*)$", text):
        wanted = dict.fromkeys(re.findall(r"- Expected an? (.+?)(?= - |\. |$)", union[1]))
        names = (re.sub(r"^one of ([^,]+)$", r"\1", name) for name in wanted)
        return f"expected {' or '.join(names) or 'another type'}, got {union[2]}"
    text = re.sub(r"^Expected an? (.+?)\. Got value: (.*)$", r"expected \1, got \2", text)
    return text[0].lower() + text[1:]


def numbers(text: str, option: str) -> list[float]:
    """Numbers between commas.

    Raises:
        UsageError: something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r}: write numbers with commas between, such as 0.75,1,1.25"
        ) from error
