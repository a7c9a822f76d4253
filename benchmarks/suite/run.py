"""The suite: rows chosen and measured one by one, the results written after each."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite.page import claims_table, page, plot
from benchmarks.suite.process import Order, run_row
from benchmarks.suite.result import RowResult, Verdict, judge
from benchmarks.suite.rows import TABLE, Device, Row, grid
from metaformer.bench.catalog import matches
from metaformer.distributed import find_device
from metaformer.errors import ConfigError, OutputError, UnknownName
from metaformer.storage import write_text

Log = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Rows of a run and its settings."""

    rows: str = ""
    """Part of a row's name, or a pattern with * and ?; all rows when empty."""
    grid: bool = False
    """The grid of all families and conditions instead of the table that the library is judged by."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`: each row is for one of the two."""
    rounds: int = 10
    """Measurements of each contender."""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""
    limit: float = 3600.0
    """Seconds after which a row is abandoned."""

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")


@dataclass(frozen=True)
class SuiteReport:
    """Result of a run of the suite."""

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
    """The rows of a configuration.

    Raises:
        UnknownName: no row matches.
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
    log: Log = lambda line: print(line, file=sys.stderr),
) -> SuiteReport:
    """Measure rows and write `suite.json`, `suite.md`, `suite.png` and the compilers' logs.

    Args:
        config: rows and settings.
        out: directory to write to.
        rows: rows in place of the configuration's.
        log: called with each line of progress.

    Raises:
        UnknownName: no row matches.
        ConfigError: no such device.
        OutputError: the directory cannot be written to.
    """
    config = config or SuiteConfig()
    rows = choose(config) if rows is None else rows
    out = Path(out)
    logs = _make_directory(out / "logs")
    results: list[RowResult] = []
    report = SuiteReport(config, ())
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-suite-") as caches:
        order = Order(config.rounds, config.threads, config.limit, Path(caches))
        for number, row in enumerate(rows, 1):
            done = number - 1
            left = (time.monotonic() - start) / done * (len(rows) - done) if done else None
            log(f"row {number} of {len(rows)}: {row.name}{_remaining(left)}")
            file = logs / f"{row.name}.log"
            file.unlink(missing_ok=True)
            results.append(run_row(row, order, file, lambda event: _log_event(event, log)))
            report = SuiteReport(config, tuple(results))
            _write(report, out)
            for verdict in report.verdicts[-len(row.claims) :]:
                log(f"  {verdict.claim.title}: {_summary(verdict)}")
            for line in _profiles(results[-1]):
                log(line)
    log(plot(report.verdicts, out / "suite.png"))
    return report


def _make_directory(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created ({error.strerror})") from error
    return folder


def _write(report: SuiteReport, out: Path) -> None:
    """Write after each row, so that an interrupted run has its results."""
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    write_text(out / "suite.json", text)
    write_text(out / "suite.md", report.text())


def _remaining(seconds: float | None) -> str:
    return "" if seconds is None else f" (about {seconds / 60:.0f} min to go)"


def _summary(verdict: Verdict) -> str:
    if verdict.minima is None or verdict.median is None:
        return verdict.text
    ratios = f"{verdict.minima:.3f} by minima, {verdict.median:.3f} by median"
    return f"{ratios} ({verdict.claim.goal}): {verdict.text}"


def _profiles(result: RowResult) -> Iterator[str]:
    """Profiles of our best contenders."""
    for outcome in result.outcomes:
        if outcome.profile is not None:
            share = result.gemm_share(outcome)
            ceiling = "" if share is None else f"; {share:.0%} of the product ceiling"
            yield f"  {outcome.name}: {outcome.profile}{ceiling}"


def _log_event(event: Mapping[str, Any], log: Log) -> None:
    """Log an event inside a row."""
    if "prepared" in event:
        log(f"  {event['prepared']}: ready after {event['seconds']} s")
    elif "failed" in event:
        log(f"  {event['failed']}: left out: {event['reason']}")
    elif "round" in event:
        log(f"  round {event['round']} of {event['of']}")
