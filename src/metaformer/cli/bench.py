"""`metaformer bench MODEL…` and `metaformer bench suite`: the same as `python -m metaformer.bench`."""

from metaformer.cli.parser import Parser


def run(argv: list[str]) -> int:
    """Count and time models, or run the whole suite."""
    return _suite(argv[1:]) if argv[:1] == ["suite"] else _models(argv)


def _models(argv: list[str]) -> int:
    from metaformer.bench.__main__ import EXAMPLE, add_options
    from metaformer.bench.__main__ import run as measure

    parser = Parser("bench", "Parameters, multiply-adds, activations and speed of models.", EXAMPLE.strip())
    add_options(parser)
    return measure(parser.parse_args(argv))


def _suite(argv: list[str]) -> int:
    from metaformer.bench.suite import command

    parser = Parser("bench suite", command.DESCRIPTION, command.EXAMPLE.strip())
    command.add_options(parser)
    return command.run(parser.parse_args(argv))
