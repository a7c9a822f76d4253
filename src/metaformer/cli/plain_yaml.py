"""Checks of a YAML file before it is parsed: size, depth, aliases and repeated keys."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from metaformer.errors import ConfigError

LARGEST = 1_000_000
"""Bytes of a configuration, at most."""
DEEPEST = 20
"""Levels of nesting, at most."""


def check_yaml(file: Path) -> None:
    """Refuse YAML that no configuration needs and that could exhaust a parser.

    Raises:
        ConfigError: the file is too large, nested too deeply, uses aliases, or names a field twice.
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read; the parser's own message is better.
    """
    if file.stat().st_size > LARGEST:
        raise ConfigError(f"{file}: {file.stat().st_size:,} bytes are no configuration ({LARGEST:,} at most)")
    text, depth = file.read_text(encoding="utf-8"), 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # one after another, without recursion
        where = f"{file}, {_line(event)}"
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where}: aliases (*{event.anchor}) are not read: write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise ConfigError(f"{where}: nested more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    for key in _repeated(yaml.compose(text, Loader=yaml.SafeLoader)):
        raise ConfigError(f"{file}, {_line(key)}: {key.value} is given a second time")


def _line(part: yaml.Event | yaml.Node) -> str:
    return f"line {part.start_mark.line + 1}" if part.start_mark is not None else "somewhere"


def _repeated(node: yaml.Node | None) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            name = str(key.value)  # keys that are no strings are left to the parser
            if name in names:
                yield key
            names.add(name)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)
