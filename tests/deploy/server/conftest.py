"""Servers that several tests use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from serving import Running, running
from toys import block_scene


@pytest.fixture(scope="session")
def server(untrained: dict[str, Path]) -> Iterator[Running]:
    """A server of a network of each task, by the names of the tasks."""
    with running(untrained, max_upload=300_000, max_pixels=1_000_000, timeout=20) as one:
        yield one


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Images of several sizes."""
    import numpy as np

    random = np.random.RandomState(3)
    return [Image.fromarray(block_scene(i, random)[0]) for i in range(4)]
