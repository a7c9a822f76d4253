"""Rows cross to another process as JSON."""

import json
from dataclasses import asdict

import pytest

from benchmarks.suite.child import row_of
from benchmarks.suite.row import Row
from benchmarks.suite.table import TABLE


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_there_and_back(row: Row) -> None:
    assert row_of(json.loads(json.dumps(asdict(row)))) == row
