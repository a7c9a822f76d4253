"""Checks of a YAML file before it is parsed: what it is, size, depth, aliases and repeated keys."""

from pathlib import Path

from metaformer import serialize
from metaformer.errors import ConfigError
from metaformer.storage import read_text

LARGEST = 1_000_000
"""Bytes of a configuration, at most."""


def check_yaml(file: Path) -> None:
    """Refuse YAML that no configuration needs and that could exhaust a parser.

    Raises:
        ConfigError: no ordinary text file, too large, nested too deeply, with aliases, or a field twice.
        yaml.YAMLError: it is no YAML; the parser's own message is better.
    """
    serialize.check_yaml(read_text(file, ConfigError, largest=LARGEST), file, ConfigError)
