"""`metaformer COMMAND …`: each command calls one Python function, and loads what that needs."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from metaformer.cli.parser import UsageError
from metaformer.errors import MetaFormerError, RankError, UnknownName
from metaformer.process import keep_freed_memory, sleep_rather_than_spin

__all__ = ["COMMANDS", "main"]


@dataclass(frozen=True)
class Command:
    """A word of the command line."""

    help: str
    example: str
    module: str
    """Where its `run` is."""


COMMANDS: dict[str, Command] = {
    "list": Command("models, weights, recipes and mixers", "metaformer list caformer", "listing"),
    "data": Command("make, check and shard data sets", "metaformer data demo demo-data", "data"),
    "train": Command(
        "train by a recipe", "metaformer train demo/classify --data.root demo-data/classify", "train"
    ),
    "runs": Command("trainings: state, best figure, how to go on", "metaformer runs runs/", "runs"),
    "evaluate": Command("measure accuracy", "metaformer evaluate runs/demo-classify --flip", "evaluate"),
    "predict": Command(
        "classes, label maps or objects of images",
        "metaformer predict runs/demo photos/ --out found --draw",
        "predict",
    ),
    "quantize": Command(
        "a classifier in int8, for CPUs",
        "metaformer quantize runs/demo-classify --out runs/demo-int8",
        "quantize",
    ),
    "convert": Command(
        "rewrite a checkpoint", "metaformer convert in.pth out.safetensors --to timm", "convert"
    ),
    "export": Command(
        "compile a network to a file", "metaformer export runs/demo-classify net.pt2", "export"
    ),
    "bench": Command(
        "count and time models", "metaformer bench poolformer_s12 --against timm:poolformer_s12", "bench"
    ),
    "verify": Command(
        "published against measured accuracy", "metaformer verify caformer_s18 --data IMAGENET", "verify"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for an error told in one line, 2 for a wrong call."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except UsageError as error:
        return _fail(str(error), 2)
    except MetaFormerError as error:
        _tell_launcher(error)
        own = isinstance(error, UnknownName) and error.kind == "mixer"
        return _fail(f"{error}{'; a mixer of your own comes with --import FILE.py' if own else ''}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        if not (told := _of_the_machine(error)):
            raise
        return _fail(told, 1)
    except SystemExit as stop:  # --help, or a training that was asked to stop
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"metaformer {version('metaformer')}")
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=2, cutoff=0.4)
        raise UsageError(
            f"unknown command {command!r}: {_or(near) if near else 'known: ' + ', '.join(COMMANDS)}"
        )
    keep_freed_memory()
    sleep_rather_than_spin()
    module = importlib.import_module(f"{__name__}.{COMMANDS[command].module}")
    status: int = module.run(rest)
    return status


def _tell_launcher(error: MetaFormerError) -> None:
    """Write the file in which torchrun looks for the failure that began it all."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, RankError):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _of_the_machine(error: Exception) -> str:
    """What to tell of a full disk or memory; empty for what is a mistake in the program."""
    if isinstance(error, OSError) and error.errno is not None:
        try:
            sys.stdout.flush()
        except OSError:  # it is standard output that failed, and leaving would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return str(error)
    full = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or full:
        told = str(error).partition(". ")[0] or "not enough memory"
        return f"{told}: take smaller images or batches; in training, --optim.accumulate keeps the batch"
    return ""


def _or(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(names)}?"


def _fail(message: str, status: int) -> int:
    print(f"metaformer: error: {_line(message)}", file=sys.stderr)
    return status


def _line(message: str) -> str:
    return "; ".join(line for part in message.splitlines() if (line := " ".join(part.split()).rstrip(";")))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: metaformer COMMAND … (metaformer COMMAND --help tells more; --version)", ""]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "examples:", *(f"  {command.example}" for command in COMMANDS.values())]
    return "\n".join(lines)
