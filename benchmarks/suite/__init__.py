"""What the library is judged by, measured: rows as data, contenders by name, one process a row."""

from benchmarks.suite.result import Outcome, RowResult, Verdict, judge
from benchmarks.suite.rows import Claim, Row
from benchmarks.suite.run import SuiteConfig, SuiteReport, choose, run_suite

__all__ = [
    "Claim",
    "Outcome",
    "Row",
    "RowResult",
    "SuiteConfig",
    "SuiteReport",
    "Verdict",
    "choose",
    "judge",
    "run_suite",
]
