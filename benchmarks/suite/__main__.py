"""`python -m benchmarks.suite`: the comparisons that the library is judged by."""

import argparse
import sys
from pathlib import Path

from benchmarks.program import run_program
from benchmarks.suite.processor import KEPT_TO
from benchmarks.suite.record import RESULTS
from benchmarks.suite.rows import QUICK_ROUNDS, Row
from benchmarks.suite.run import SuiteConfig, choose, run_suite

DESCRIPTION = (
    "The comparisons that the library is judged by: every contender of a row in turn, in one process."
)
EXAMPLE = """  python -m benchmarks.suite
  python -m benchmarks.suite --quick
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
    add("--quick", action="store_true", help="few rows and contenders: minutes, compilers' caches kept")
    add("--list", action="store_true", help="list the rows and their comparisons, and measure nothing")
    add("--rounds", type=int, metavar="N", help="measurements (default 10; 5 with --quick)")
    add("--device", choices=["auto", "cpu", "cuda"], default=config.device, help="whose rows (default auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add(
        "--instructions",
        choices=list(KEPT_TO),
        default=config.instructions,
        help="the newest that any contender may use, without bfloat16's (default all)",
    )
    add("--limit", type=float, default=config.limit, metavar="S", help="seconds for a row (default 3600)")
    add(
        "--out",
        type=Path,
        default=Path("runs/bench-suite"),
        metavar="DIR",
        help="directory for the results",
    )
    add(
        "--record",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="DIR",
        help="write the figures to DATE-PROCESSOR.json in DIR, too (default benchmarks/results)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure or list, print, and return the exit status, which is 0 also where a target is missed.

    Raises:
        MetaFormerError: something that the user can correct.
    """
    rounds = QUICK_ROUNDS if args.quick else SuiteConfig.rounds
    config = SuiteConfig(
        rows=args.rows,
        grid=args.grid,
        quick=args.quick,
        instructions=args.instructions,
        device=args.device,
        rounds=rounds if args.rounds is None else args.rounds,
        threads=args.threads,
        limit=args.limit,
    )
    if args.list:
        print("\n".join(line for row in choose(config) for line in _listed(row)))
        return 0
    report = run_suite(config, args.out)
    print(report.summary())
    print(f"written: {args.out}/suite.json, suite.md", file=sys.stderr)
    if args.record is not None:
        print(f"recorded: {report.record(args.record)}", file=sys.stderr)
    return 0


def _listed(row: Row) -> list[str]:
    claims = (
        f"  {claim.title} ({claim.goal}): {', '.join(claim.ours)} : {', '.join(claim.theirs) or 'none'}"
        for claim in row.claims
    )
    return [row.name, *claims]


if __name__ == "__main__":
    sys.exit(run_program("benchmarks.suite", DESCRIPTION, EXAMPLE, add_options, run))
