"""The command line of `python -m benchmarks.suite`."""

import argparse
import sys
from pathlib import Path

from benchmarks.suite.row import Row
from benchmarks.suite.run import SuiteConfig, choose, run_suite

DESCRIPTION = (
    "The comparisons that the library is judged by: every contender of a row in turn, in one process."
)
EXAMPLE = """  python -m benchmarks.suite
  python -m benchmarks.suite --list
  python -m benchmarks.suite --rows 'cpu-poolformer*' --rounds 20
  python -m benchmarks.suite --grid --rows caformer --out runs/grid"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads."""
    add, config = parser.add_argument, SuiteConfig()
    add(
        "--rows",
        default="",
        metavar="PATTERN",
        help="only rows whose name holds this, or matches its * and ?",
    )
    add("--grid", action="store_true", help="every family, type, batch and mode instead of the judged table")
    add("--list", action="store_true", help="name the rows and what is compared in them, and measure nothing")
    add("--rounds", type=int, default=config.rounds, metavar="N", help="measurements (default 10)")
    add("--device", choices=["auto", "cpu", "cuda"], default=config.device, help="whose rows (default auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add("--limit", type=float, default=config.limit, metavar="S", help="seconds for a row (default 3600)")
    add(
        "--out",
        type=Path,
        default=Path("runs/bench-suite"),
        metavar="DIR",
        help="where to write the findings",
    )


def run(words: argparse.Namespace) -> int:
    """Measure or list, print, and return the exit status: 0 also where a target is missed.

    Raises:
        MetaFormerError: something the user can mend.
    """
    config = SuiteConfig(
        rows=words.rows,
        grid=words.grid,
        device=words.device,
        rounds=words.rounds,
        threads=words.threads,
        limit=words.limit,
    )
    if words.list:
        print("\n".join(line for row in choose(config) for line in _listed(row)))
        return 0
    report = run_suite(config, words.out)
    print(report.table())
    print(f"written: {words.out}/suite.json, suite.md", file=sys.stderr)
    return 0


def _listed(row: Row) -> list[str]:
    claims = (
        f"  {claim.title} ({claim.goal}): {', '.join(claim.ours)} : {', '.join(claim.theirs) or 'no one'}"
        for claim in row.claims
    )
    return [row.name, *claims]
