"""`metaformer check-mixer FILE.py:NAME`."""

import threading
from typing import Final

from metaformer.cli.parser import Parser, say, say_step, write_json
from metaformer.process import StepLimit

TIMEOUT: Final = 300.0
"""Seconds of a check, at most; the compiler takes a minute on a busy machine."""

EXAMPLE = """metaformer check-mixer my_mixer.py:cross
  metaformer check-mixer 'my_mixer.py:cross(size=5)' --fast --json report.json
  metaformer check-mixer attention"""


def run(argv: list[str]) -> int:
    """Print the outcome of each check, and a remedy for each that failed; 1 where any did."""
    parser = Parser(
        "check-mixer",
        "Check that a token mixer keeps the contract on which the rest of the library relies: any size,\n"
        "gradients, bf16, compilation, export, memory layout, counted costs and more. Exit status 1 where\n"
        "a check fails.",
        EXAMPLE,
    )
    from metaformer.registry import import_files
    from metaformer.testing import DIM, GRID, check_mixer

    add = parser.add_argument
    add("mixer", metavar="[FILE.py:]NAME", help="registered name, after the file that registers it")
    add("--dim", type=int, default=DIM, metavar="N", help=f"channels of the inputs (default {DIM})")
    size = "height and width of the inputs (default {} {})".format(*GRID)
    add("--grid", type=int, nargs=2, default=GRID, metavar="N", help=size)
    text = f"time of each check, at most: the command ends where it is over (default {TIMEOUT:g})"
    add("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help=text)
    add("--fast", action="store_true", help="leave out what compiles code, exports files or measures time")
    parser.add_json()
    parser.add_import()
    args = parser.parse_args(argv)
    if args.mixer.endswith(".py"):
        parser.error(f"{args.mixer}: name its mixer as well, as in {args.mixer}:NAME")
    path, separator, name = args.mixer.partition(".py:")  # options of a mixer may hold a colon
    file, name = (f"{path}.py", name) if separator else ("", path)
    if not 0 < args.timeout <= threading.TIMEOUT_MAX:
        parser.error(f"--timeout is {args.timeout:g}: it must be above 0")
    begin, allowed = say_step("check-mixer"), f"more than {args.timeout:g} s: --timeout allows more"
    with StepLimit(args.timeout, lambda step: f"check-mixer: {name}: {step} takes {allowed}") as limit:

        def on_step(check: str) -> None:
            begin(check)
            limit.begin(f"check {check!r}")

        limit.begin("reading and building it")
        import_files([*args.import_files, *([file] if file else [])])
        report = check_mixer(name, dim=args.dim, grid=tuple(args.grid), fast=args.fast, on_step=on_step)
    if args.json:
        write_json(args.json, report.to_dict())
    say(report.text())
    return 0 if report.ok else 1
