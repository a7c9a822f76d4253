"""The suite: rows chosen, each measured in its own process, written down after each."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite.grid import grid
from benchmarks.suite.outcome import RowResult
from benchmarks.suite.page import claims_table, page
from benchmarks.suite.plot import plot
from benchmarks.suite.process import Order, run_row
from benchmarks.suite.row import Device, Row
from benchmarks.suite.table import TABLE
from benchmarks.suite.verdict import Verdict, judge
from metaformer.bench.catalog import matches
from metaformer.distributed import find_device
from metaformer.errors import ConfigError, OutputError, UnknownName
from metaformer.storage import write_text

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which rows are measured, and how."""

    rows: str = ""
    """Part of a row's name, or a pattern with * and ?; all rows when empty."""
    grid: bool = False
    """The wide grid instead of the table that the library is judged by."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`: rows are made for one of the two."""
    rounds: int = 10
    """Measurements of each contender."""
    threads: int | None = None
    """CPU threads; PyTorch's choice when not given."""
    limit: float = 3600.0
    """Seconds after which a row is given up."""

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")


@dataclass(frozen=True)
class SuiteReport:
    """What a run of the suite found."""

    config: SuiteConfig
    results: tuple[RowResult, ...]

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each claim of each row, in order."""
        return [judge(claim, result) for result in self.results for claim in result.row.claims]

    def text(self) -> str:
        """The page in Markdown."""
        return page(self.results, self.verdicts, self.config.rounds)

    def table(self) -> str:
        """The page's first table."""
        return "\n".join(claims_table(self.results, self.verdicts))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "settings": asdict(self.config),
            "claims": [verdict.to_dict() for verdict in self.verdicts],
            "rows": [result.to_dict() for result in self.results],
        }


def choose(config: SuiteConfig) -> tuple[Row, ...]:
    """The rows that are asked for.

    Raises:
        UnknownName: the pattern fits none.
        ConfigError: no such device.
    """
    kind: Device = "cuda" if find_device(config.device).type == "cuda" else "cpu"
    known = grid(kind) if config.grid else tuple(row for row in TABLE if row.device == kind)
    rows = tuple(row for row in known if matches(row.name, config.rows))
    if not rows:
        raise UnknownName("row", config.rows, [row.name for row in known])
    return rows


def run_suite(
    config: SuiteConfig | None = None,
    out: str | Path = "runs/bench-suite",
    *,
    rows: Sequence[Row] | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> SuiteReport:
    """Measure rows and write `suite.json`, `suite.md`, `suite.png` and what compilers said into a directory.

    Args:
        config: which rows, and how.
        out: the directory.
        rows: rows of one's own instead of the table's.
        say: is given each line of progress.

    Raises:
        UnknownName: no row of that name.
        ConfigError: no such device.
        OutputError: the directory cannot be written to.
    """
    config = config or SuiteConfig()
    rows = choose(config) if rows is None else rows
    out = Path(out)
    logs = _made(out / "logs")
    results: list[RowResult] = []
    report = SuiteReport(config, ())
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-suite-") as caches:
        order = Order(config.rounds, config.threads, config.limit, Path(caches))
        for number, row in enumerate(rows, 1):
            left = (
                (time.monotonic() - start) / (number - 1) * (len(rows) - number + 1) if number > 1 else None
            )
            say(f"row {number} of {len(rows)}: {row.name}{_remaining(left)}")
            log = logs / f"{row.name}.log"
            log.unlink(missing_ok=True)
            results.append(run_row(row, order, log, lambda event: _tell(event, say)))
            report = SuiteReport(config, tuple(results))
            _write(report, out)
            for verdict in report.verdicts[-len(row.claims) :]:
                say(f"  {verdict.claim.title}: {_said(verdict)}")
            for line in _divided(results[-1]):
                say(line)
    say(plot(report.verdicts, out / "suite.png"))
    return report


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
    return folder


def _write(report: SuiteReport, out: Path) -> None:
    """After each row: a run that is interrupted keeps what it has."""
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    write_text(out / "suite.json", text)
    write_text(out / "suite.md", report.text())


def _remaining(seconds: float | None) -> str:
    return "" if seconds is None else f" (about {seconds / 60:.0f} min to go)"


def _said(verdict: Verdict) -> str:
    if verdict.minima is None or verdict.median is None:
        return verdict.word
    ratios = f"{verdict.minima:.3f} by minima, {verdict.median:.3f} by median"
    return f"{ratios} ({verdict.claim.goal}): {verdict.word}"


def _divided(result: RowResult) -> Iterator[str]:
    """Where the time of our best goes."""
    for outcome in result.outcomes:
        if outcome.profile is not None:
            share = result.gemm_share(outcome)
            ceiling = "" if share is None else f"; {share:.0%} of the product ceiling"
            yield f"  {outcome.name}: {outcome.profile}{ceiling}"


def _tell(event: Mapping[str, Any], say: Say) -> None:
    """Progress inside a row, in a line each."""
    if "prepared" in event:
        say(f"  {event['prepared']}: ready after {event['seconds']} s")
    elif "failed" in event:
        say(f"  {event['failed']}: left out: {event['reason']}")
    elif "round" in event:
        say(f"  round {event['round']} of {event['of']}")
