"""What a server is started with."""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from metaformer.errors import ConfigError
from metaformer.serialize import Range, check_ranges

_UNITS: Final = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
_RANGES: Final = {
    "port": Range(0, 65535, integer=True),
    "max_batch": Range(1, 1024, integer=True),
    "max_delay_ms": Range(0, 10_000),
    "queue": Range(1, 100_000, integer=True),
    "timeout": Range(0.1, 3600),
    "max_upload": Range(1, 10**9, integer=True),
    "max_pixels": Range(1, 10**9, integer=True),
    "max_connections": Range(1, 65535, integer=True),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server.

    Raises:
        ConfigError: a value out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 8
    """Images that a network computes at once."""
    max_delay_ms: float = 5.0
    """Milliseconds that the first image of a batch waits for others."""
    queue: int = 32
    """Requests that wait for a network."""
    timeout: float = 30.0
    """Seconds of a request."""
    max_upload: int = 20_000_000
    """Bytes of a request's body."""
    max_pixels: int = 25_000_000
    """Pixels of an image."""
    max_connections: int = 256
    verbose: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a network's process is started with; plain values."""

    name: str
    """In addresses."""
    source: str
    max_batch: int
    max_pixels: int
    """Pixels of an image as the network is given it: padding makes thin images many times as large."""
    optimize: bool = True
    loading: dict[str, Any] = field(default_factory=dict)
    """Arguments of `Predictor` for all tasks."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `Predictor` for this task."""
    imports: tuple[str, ...] = ()
    """Files with a user's own mixers."""


def read_size(text: str | int, name: str) -> int:
    """Bytes of a text such as 20MB.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B)?", str(text).strip().upper())
    if found is None:
        raise ConfigError(f"{name}: {str(text)!r:.40} is no size: write a number of bytes, or such as 20MB")
    return int(float(found[1]) * _UNITS[found[2] or ""])
