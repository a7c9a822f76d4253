"""A command line of `python -m benchmarks.NAME`."""

import sys
from collections.abc import Sequence
from types import ModuleType

from metaformer.cli.parser import Parser, UsageError
from metaformer.errors import MetaFormerError
from metaformer.process import keep_freed_memory


def run_program(name: str, command: ModuleType, argv: Sequence[str] | None = None) -> int:
    """Run a module's `run` on the options that its `add_options` adds; gives the exit status."""
    parser = Parser(name, command.DESCRIPTION, command.EXAMPLE.strip(), program="python -m")
    command.add_options(parser)
    keep_freed_memory()
    try:
        status: int = command.run(parser.parse_args(argv))
        return status
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MetaFormerError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
