"""Catalog of models with their size and multiply-adds, and of their published weights."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib import resources
from typing import Any

import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS, family
from metaformer.bench.counts import count
from metaformer.errors import UnknownName
from metaformer.weights.sources import SOURCES


@dataclass(frozen=True)
class Entry:
    """A model at one input size, with or without published weights."""

    model: str
    tag: str
    """Empty for a model without published weights."""
    image_size: int
    params: int
    """Parameters with the published number of classes, frozen ones included."""
    macs: int
    """Multiply-adds at this size."""
    top1: float | None
    """Published ImageNet-1K top-1 in percent."""
    num_classes: int

    @property
    def family(self) -> str:
        """The name before the size."""
        return family(self.model)

    @property
    def name(self) -> str:
        """What `create_model` takes."""
        return f"{self.model}.{self.tag}" if self.tag else self.model


def catalog(pattern: str = "") -> list[Entry]:
    """List models and weights whose name contains `pattern`, or matches its * and ?.

    Raises:
        UnknownName: nothing matches.
    """
    entries = [entry for entry in _entries() if matches(entry.name, pattern)]
    if not entries and not any(matches(name, pattern) for name in UNAVAILABLE):
        raise UnknownName("model", pattern, VARIANTS)
    return entries


def matches(name: str, pattern: str) -> bool:
    """Whether a name matches a filter."""
    if "*" in pattern or "?" in pattern:
        return fnmatch(name, pattern) or fnmatch(name.partition(".")[0], pattern)
    return pattern in name


def cost(model: str, image_size: int, num_classes: int) -> tuple[int, int]:
    """Parameters and multiply-adds of a variant, from the table in the package where it holds them."""
    known = _table().get(f"{model} {image_size} {num_classes}")
    return (known[0], known[1]) if known else counted(VARIANTS[model], image_size, num_classes)


def counted(config: MetaFormerConfig, image_size: int, num_classes: int) -> tuple[int, int]:
    """Count parameters and multiply-adds on one block per stage, for stages of equal blocks."""
    size = (image_size, image_size)
    short = replace(config, depths=(1,) * config.stages, image_size=size, num_classes=num_classes)
    with torch.device("meta"):
        network = MetaFormer(short)
    counts = count(network, size)
    params, macs = counts.params, counts.macs
    rows = counts.by("block")
    for stage, depth in enumerate(config.depths):
        block = rows[f"stages.{stage}.blocks.0"]
        params += (depth - 1) * block["params"]
        macs += (depth - 1) * sum(block.get(kind, 0) for kind in ("convolutions", "products", "attention"))
    return params, macs


def write_table() -> str:
    """The text of costs.json; a test compares it with the file."""
    keys = [(entry.model, entry.image_size, entry.num_classes) for entry in _entries()]
    rows = {" ".join(map(str, key)): list(counted(VARIANTS[key[0]], *key[1:])) for key in dict.fromkeys(keys)}
    lines = (f' "{key}": {json.dumps(value)}' for key, value in rows.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


@functools.cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("costs.json").read_text()
    return dict(json.loads(text))


def _entries() -> Iterator[Entry]:
    for model, config in VARIANTS.items():
        published = [source for source in SOURCES.values() if source.model == model]
        for source in published:
            size, classes = source.image_size[0], source.num_classes
            params, macs = cost(model, size, classes)
            yield Entry(model, source.tag, size, params, macs, source.metrics.get("top1"), classes)
        if not published:
            size = config.image_size[0]
            yield Entry(model, "", size, *cost(model, size, config.num_classes), None, config.num_classes)
