"""Compilation with the weights as constants, which Inductor folds and lays out for its operations."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def frozen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a network's method, once for each shape of its images; no gradient is kept.

    A change of the weights after the first call is not seen.
    """
    from torch._inductor import config

    def own(*arguments: Any, **options: Any) -> Any:
        """Code of its own: what Dynamo made of a network's method without freezing it would take again."""
        return function(*arguments, **options)

    compiled = torch.compile(own, dynamic=False)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        # Both the tracer and Inductor ask for this, and again at each new shape.
        with config.patch(freezing=True), torch.no_grad():
            return compiled(*arguments, **options)

    return call
