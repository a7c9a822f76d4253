"""Answers to requests, before they are HTTP."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

JSON: Final = "application/json"


class Reply(NamedTuple):
    """An answer."""

    content: bytes
    media_type: str
    status: int = 200
    headers: Mapping[str, str] | None = None


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Plain values as JSON."""
    return Reply(json.dumps(value, allow_nan=False).encode(), JSON, status, headers)
