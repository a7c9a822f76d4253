"""What the library is judged by, measured: rows as data, contenders by name, one process a row."""

from metaformer.bench.suite.outcome import Outcome, RowResult
from metaformer.bench.suite.row import Claim, Row
from metaformer.bench.suite.run import SuiteConfig, SuiteReport, choose, run_suite
from metaformer.bench.suite.verdict import Verdict, judge

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
