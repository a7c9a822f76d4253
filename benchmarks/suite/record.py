"""Record of a run: the figures alone, in a dated file for the kind of processor, without names of files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.suite.processor import kind
from benchmarks.suite.result import Outcome, RowResult, Verdict
from metaformer.bench.timing import Machine
from metaformer.errors import ConfigError
from metaformer.storage import write_text

RESULTS = Path(__file__).parent.parent / "results"


def write_record(
    results: Sequence[RowResult], verdicts: Sequence[Verdict], settings: Mapping[str, Any], folder: Path
) -> Path:
    """Write `DATE-KIND.json`, over one of the same day, and return its path.

    Args:
        results: the rows.
        verdicts: of all their claims.
        settings: of the run.
        folder: of the records.

    Raises:
        ConfigError: nothing was measured.
        OutputError: the folder cannot be written to.
    """
    machine = next((result.machine for result in results if result.machine is not None), None)
    if machine is None:
        raise ConfigError("record: nothing was measured")
    date = datetime.now(UTC).date().isoformat()
    name = kind(machine.device, machine.instructions, settings["instructions"])
    values = {
        "date": date,
        "kind": name,
        "machine": asdict(machine),
        "settings": dict(settings),
        "rows": [_row(result, verdicts, machine) for result in results],
    }
    file = folder / f"{date}-{name}.json"
    write_text(file, json.dumps(_without_paths(values), indent=1) + "\n")
    return file


def _row(result: RowResult, verdicts: Sequence[Verdict], machine: Machine) -> dict[str, Any]:
    assert result.machine in (machine, None)
    return {
        "name": result.row.name,
        "failure": result.failure,
        "claims": [_claim(verdict) for verdict in verdicts if verdict.row == result.row.name],
        "contenders": [_contender(result, outcome) for outcome in result.outcomes],
    }


def _claim(verdict: Verdict) -> dict[str, Any]:
    return {
        "title": verdict.claim.title,
        "goal": verdict.claim.goal,
        "minima": _rounded(verdict.minima),
        "median": _rounded(verdict.median),
        "quartiles": [_rounded(quartile) for quartile in verdict.quartiles or ()],
        "ours": verdict.ours,
        "theirs": verdict.theirs,
        "verdict": verdict.text,
    }


def _contender(result: RowResult, outcome: Outcome) -> dict[str, Any]:
    timing, profile = outcome.timing, outcome.profile
    return {
        "name": outcome.name,
        "minimum_ms": None if timing is None else _rounded(1e3 * timing.minimum),
        "median_ms": None if timing is None else _rounded(1e3 * timing.median),
        "gemm_share": _rounded(result.gemm_share(outcome)),
        "kernels": list(profile.kernels) if profile else [],
        "failure": outcome.failure,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _without_paths(value: Any) -> Any:
    """A value whose texts, such as compilers' messages, name no files."""
    if isinstance(value, str):
        return " ".join("(path)" if "/" in word else word for word in value.split(" "))
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    return [_without_paths(each) for each in value] if isinstance(value, list | tuple) else value
