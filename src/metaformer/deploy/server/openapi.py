"""What `/openapi.json` says of the addresses."""

from collections.abc import Sequence
from typing import Any


def document(models: Sequence[str]) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "metaformer", "version": "1"}, "paths": {}}
