"""What the library is judged by, measured: rows as data, contenders by name, one process a row."""

from benchmarks.suite.outcome import Outcome, RowResult
from benchmarks.suite.row import Claim, Row
from benchmarks.suite.run import SuiteConfig, SuiteReport, choose, run_suite
from benchmarks.suite.verdict import Verdict, judge

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
