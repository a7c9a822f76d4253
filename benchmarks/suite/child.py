"""`python -m benchmarks.suite.child`: measures one row, which it reads from standard input.

Standard output carries one JSON object a line: events, and at the end the result. Whatever else is printed,
by compilers for instance, goes to standard error.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.suite.measuring import measure_row
from benchmarks.suite.row import Claim, Row
from metaformer.process import keep_freed_memory


def row_of(values: Mapping[str, Any]) -> Row:
    """Undo `dataclasses.asdict` of a row after a passage through JSON."""
    claims = tuple(
        Claim(**{**claim, "ours": tuple(claim["ours"]), "theirs": tuple(claim["theirs"])})
        for claim in values["claims"]
    )
    return Row(**{**values, "claims": claims})


def main() -> int:
    """Measure, and tell."""
    keep_freed_memory()
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if order["threads"]:
        torch.set_num_threads(order["threads"])

    def tell(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=events)

    result = measure_row(row_of(order["row"]), order["rounds"], skip=order["skip"], tell=tell)
    machine = asdict(result.machine) if result.machine else None
    tell({"outcomes": [asdict(outcome) for outcome in result.outcomes], "machine": machine})
    return 0


def _leave_with_parent() -> None:
    """Wait until standard input ends, which it does when the process that holds it is gone."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
