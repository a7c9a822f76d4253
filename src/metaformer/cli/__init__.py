"""`metaformer COMMAND …`: each command calls one Python function and imports only what that needs."""

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from metaformer.cli.parser import UsageError, drop_stdout, in_options
from metaformer.errors import MetaFormerError, RankError, UnknownName
from metaformer.process import (
    encoding_remedy,
    keep_freed_memory,
    open_files_limit,
    print_anywhere,
    printable,
    sleep_rather_than_spin,
)

__all__ = ["COMMANDS", "main"]


@dataclass(frozen=True)
class Command:
    """One command."""

    help: str
    example: str
    module: str
    """Module of this package whose `run` it calls."""


COMMANDS: dict[str, Command] = {
    "list": Command("models, weights, recipes and mixers", "metaformer list caformer", "listing"),
    "data": Command(
        "write demo and real data, check and shard data sets", "metaformer data demo demo-data", "data"
    ),
    "train": Command(
        "train by a recipe", "metaformer train demo/classify --data.root demo-data/classify", "train"
    ),
    "study": Command("compare token mixers by a plan", "metaformer study mixers.yaml --hours 2", "study"),
    "runs": Command("runs: state, best metric, how to resume", "metaformer runs runs/", "runs"),
    "evaluate": Command("measure accuracy", "metaformer evaluate runs/demo-classify --flip", "evaluate"),
    "predict": Command(
        "classes, label maps or objects of images",
        "metaformer predict runs/demo-classify photos/ --out found --draw",
        "predict",
    ),
    "explain": Command(
        "where a network looks, as images",
        "metaformer explain runs/demo-classify photos/ --out explained",
        "explain",
    ),
    "quantize": Command(
        "a network as a file in int8, for CPUs",
        "metaformer quantize runs/demo-classify --out int8.xml",
        "quantize",
    ),
    "convert": Command(
        "rewrite a checkpoint in another format",
        "metaformer convert in.pth out.safetensors --to timm",
        "convert",
    ),
    "export": Command(
        "a network as a file: ONNX, OpenVINO, or compiled",
        "metaformer export runs/demo-classify digits.onnx",
        "export",
    ),
    "serve": Command("networks behind HTTP, with a page", "metaformer serve runs/demo-classify", "serve"),
    "bench": Command(
        "count and time models", "metaformer bench poolformer_s12 --against timm:poolformer_s12", "bench"
    ),
    "check-mixer": Command(
        "check a token mixer against the contract",
        "metaformer check-mixer my_mixer.py:cross",
        "check_mixer",
    ),
    "doctor": Command("what is installed, which kernels run, what is missing", "metaformer doctor", "doctor"),
    "verify": Command(
        "published against measured accuracy", "metaformer verify caformer_s18 --data IMAGENET", "verify"
    ),
}

COMPLETION = "--print-completion"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0, 1 for an error, printed in one line, or 2 for a usage error."""
    args = list(sys.argv[1:] if argv is None else argv)
    print_anywhere()
    try:
        status = _run(args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _fail(str(error), 2)
    except MetaFormerError as error:
        _report_to_launcher(error)
        hint = ""
        if isinstance(error, UnknownName) and error.kind == "mixer" and not any(".py" in arg for arg in args):
            hint = "; load a mixer of your own with --import FILE.py"
        return _fail(f"{error}{hint}", 1, args)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        drop_stdout()
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        message = _machine_error(error)
        if not message:
            raise
        return _fail(message, 1)
    except SystemExit as stop:  # --help, or a training that was asked to stop
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"metaformer {version('metaformer')}")
        return 0
    if args[0] == COMPLETION:
        print(_completion(args[1:]))
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=2, cutoff=0.4)
        raise UsageError(
            f"unknown command {command!r}: {_or(near) if near else 'known: ' + ', '.join(COMMANDS)}"
        )
    keep_freed_memory()
    sleep_rather_than_spin()
    status: int = _function(command)(rest)
    return status


def _function(command: str) -> Callable[[list[str]], int]:
    run: Callable[[list[str]], int] = importlib.import_module(f"{__name__}.{COMMANDS[command].module}").run
    return run


def _completion(args: list[str]) -> str:
    """The script of a shell's completion."""
    module = importlib.import_module(f"{__name__}.completion")
    known = {name: (command.help, _function(name)) for name, command in COMMANDS.items()}
    return str(module.completion(" ".join(args), known))


def _report_to_launcher(error: MetaFormerError) -> None:
    """Write the file from which torchrun reports the first failure."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, RankError):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _machine_error(error: Exception) -> str:
    """Message for a full disk or too little memory; empty for other errors, which are bugs."""
    if isinstance(error, OSError) and error.errno is not None:
        try:
            sys.stdout.flush()
        except OSError:  # standard output itself failed, and would fail again at exit
            drop_stdout()
        if error.errno == errno.EMFILE:
            limit = open_files_limit()[0]
            return f"{error}: the limit is {limit} (ulimit -n): raise it, for example by ulimit -n 1024"
        return str(error)
    full = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or full:
        message = str(error).partition(". ")[0] or "not enough memory"
        return f"{message}: use smaller images or batches; --optim.accumulate keeps a training's batch size"
    return ""


def _or(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(names)}?"


def _fail(message: str, status: int, args: Sequence[str] = ()) -> int:
    message = in_options(message + encoding_remedy(message), args)
    print(f"metaformer: error: {_line(message)}", file=sys.stderr)
    return status


def _line(message: str) -> str:
    lines = [" ".join(part.split()).rstrip(";") for part in message.splitlines()]
    return printable("; ".join(line for line in lines if line))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: metaformer COMMAND … (metaformer COMMAND --help)",
        f"       metaformer --version, metaformer {COMPLETION} bash|zsh",
        "",
    ]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "examples:", *(f"  {command.example}" for command in COMMANDS.values())]
    return "\n".join(lines)
