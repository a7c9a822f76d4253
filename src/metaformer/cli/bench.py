"""`metaformer bench MODEL…`, `bench suite` and `bench data`: the same as `python -m metaformer.bench`."""

from metaformer.cli.parser import Parser


def run(argv: list[str]) -> int:
    """Count and time models, run the whole suite, or measure loaders."""
    from metaformer.bench.__main__ import COMMANDS, EXAMPLE, add_options
    from metaformer.bench.__main__ import run as measure

    command = COMMANDS.get(argv[0]) if argv else None
    if command is None:
        parser = Parser(
            "bench", "Parameters, multiply-adds, activations and speed of models.", EXAMPLE.strip()
        )
        add_options(parser)
        return measure(parser.parse_args(argv))
    parser = Parser(f"bench {argv[0]}", command.DESCRIPTION, command.EXAMPLE.strip())
    command.add_options(parser)
    return command.run(parser.parse_args(argv[1:]))
