"""Rows cross to another process as JSON."""

import json
from dataclasses import asdict

import pytest

from metaformer.bench.suite.child import row_of
from metaformer.bench.suite.row import Row
from metaformer.bench.suite.table import TABLE


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_there_and_back(row: Row) -> None:
    assert row_of(json.loads(json.dumps(asdict(row)))) == row
