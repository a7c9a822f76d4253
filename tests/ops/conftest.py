"""Tests of operations by backend."""

import pytest

from ops.numerics import TRITON


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave Triton's tests out where there is neither CUDA nor the interpreter."""
    if not TRITON:
        items[:] = [item for item in items if _backend(item) != "triton"]


def _backend(item: pytest.Item) -> object:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("backend")
