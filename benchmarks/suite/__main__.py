"""`python -m benchmarks.suite`: the comparisons that the library is judged by."""

import argparse
import sys
from pathlib import Path

from benchmarks.program import run_program
from benchmarks.suite.rows import Row
from benchmarks.suite.run import SuiteConfig, choose, run_suite

DESCRIPTION = (
    "The comparisons that the library is judged by: every contender of a row in turn, in one process."
)
EXAMPLE = """  python -m benchmarks.suite
  python -m benchmarks.suite --list
  python -m benchmarks.suite --rows 'cpu-poolformer*' --rounds 20
  python -m benchmarks.suite --grid --rows caformer --out runs/grid"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run` reads."""
    add, config = parser.add_argument, SuiteConfig()
    add(
        "--rows",
        default="",
        metavar="PATTERN",
        help="only rows whose name contains this, or matches its * and ?",
    )
    add("--grid", action="store_true", help="every family, type, batch and mode instead of the judged table")
    add("--list", action="store_true", help="list the rows and their comparisons, and measure nothing")
    add("--rounds", type=int, default=config.rounds, metavar="N", help="measurements (default 10)")
    add("--device", choices=["auto", "cpu", "cuda"], default=config.device, help="whose rows (default auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add("--limit", type=float, default=config.limit, metavar="S", help="seconds for a row (default 3600)")
    add(
        "--out",
        type=Path,
        default=Path("runs/bench-suite"),
        metavar="DIR",
        help="directory for the results",
    )


def run(args: argparse.Namespace) -> int:
    """Measure or list, print, and return the exit status, which is 0 also where a target is missed.

    Raises:
        MetaFormerError: something that the user can correct.
    """
    config = SuiteConfig(
        rows=args.rows,
        grid=args.grid,
        device=args.device,
        rounds=args.rounds,
        threads=args.threads,
        limit=args.limit,
    )
    if args.list:
        print("\n".join(line for row in choose(config) for line in _listed(row)))
        return 0
    report = run_suite(config, args.out)
    print(report.table())
    print(f"written: {args.out}/suite.json, suite.md", file=sys.stderr)
    return 0


def _listed(row: Row) -> list[str]:
    claims = (
        f"  {claim.title} ({claim.goal}): {', '.join(claim.ours)} : {', '.join(claim.theirs) or 'none'}"
        for claim in row.claims
    )
    return [row.name, *claims]


if __name__ == "__main__":
    sys.exit(run_program("benchmarks.suite", DESCRIPTION, EXAMPLE, add_options, run))
