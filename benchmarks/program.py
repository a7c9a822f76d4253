"""Command line of a benchmark, `python -m benchmarks.NAME`."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from metaformer.cli.parser import Parser, UsageError
from metaformer.errors import MetaFormerError
from metaformer.process import keep_freed_memory


def run_program(
    name: str,
    description: str,
    example: str,
    add_options: Callable[[ArgumentParser], None],
    run: Callable[[Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse options, run a benchmark and return the exit status."""
    parser = Parser(name, description, example.strip(), program="python -m")
    add_options(parser)
    keep_freed_memory()
    try:
        return run(parser.parse_args(argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MetaFormerError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
