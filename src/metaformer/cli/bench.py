"""`metaformer bench MODEL…`: the same as `python -m metaformer.bench`."""

from metaformer.cli.parser import Parser


def run(argv: list[str]) -> int:
    """Count and time models."""
    from metaformer.bench.__main__ import EXAMPLE, add_options
    from metaformer.bench.__main__ import run as measure

    parser = Parser("bench", "Parameters, multiply-adds, activations and speed of models.", EXAMPLE.strip())
    add_options(parser)
    return measure(parser.parse_args(argv))
