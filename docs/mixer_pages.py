"""A page for each token mixer, and their table, from the mixers' code; `docs/tables.py` writes them."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from docstring_parser import parse
from torch import nn

from metaformer.backbones.block import build_mixer
from metaformer.backbones.variants import VARIANTS
from metaformer.bench.catalog import counted
from metaformer.bench.counts import count
from metaformer.mixers import MIXERS
from metaformer.registry import parse as parse_spec

SKELETON = "poolformer_s12"
DIM, SIDES = 64, (56, 112)
"""Channels and map sizes of the first stage of the skeleton, at 224 and 448 pixels."""
GIVEN = ("dim", "grid", "grid_mode")
"""Arguments that the skeleton gives."""


class Cost(NamedTuple):
    """Parameters and multiply-adds."""

    params: int
    """Of the skeleton with the mixer in every block."""
    macs: int
    """Of the same at its size of images."""
    alone: tuple[int, ...]
    """Multiply-adds of the mixer on maps of `SIDES`, with the additions of pooling."""

    @property
    def growth(self) -> str:
        """How the mixer's cost grows with the number of positions."""
        small, large = self.alone
        if not large:
            return "none"
        return "linear" if large * SIDES[0] ** 2 <= small * SIDES[1] ** 2 else "quadratic"


def cost_of(name: str) -> Cost:
    """Count a mixer with its default options."""
    config = replace(VARIANTS[SKELETON], mixers=name)
    alone = []
    for side in SIDES:
        with torch.device("meta"):
            mixer = build_mixer(name, DIM, (side, side), "strict")
        counts = count(mixer, (side, side), DIM)
        alone.append(counts.macs + counts.pooling)
    return Cost(*counted(config, config.image_size[0], config.num_classes), tuple(alone))


def describe(name: str) -> tuple[str, str, str]:
    """What a mixer is, the address of its paper (or nothing), and the paper's line."""
    module = sys.modules.get(f"metaformer.mixers.{name}") or sys.modules[MIXERS[name].__module__]
    line, _, paper = (inspect.getdoc(module) or "").partition("\n")
    title, _, address = line.rstrip(".").rpartition(", https://")
    return (title, f"https://{address}", paper.strip()) if title else (address, "", paper.strip())


def options(mixer: Callable[..., nn.Module]) -> str:
    """Table of a mixer's own options."""
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in parse(mixer.__doc__ or "").params}
    rows = [
        f"| `{p.name}` | `{p.default!r}` | {texts.get(p.name, '–').rstrip('.')} |"
        for p in inspect.signature(mixer).parameters.values()
        if p.name not in GIVEN
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) if rows else "None."


def users(name: str) -> str:
    """The published variants that have the mixer."""
    found = []
    for variant, config in VARIANTS.items():
        specs = (str(spec) for stage in range(config.stages) for spec in config.block_mixers(stage))
        if name in {parse_spec(spec)[0] for spec in specs}:
            found.append(f"`{variant}`")
    return ", ".join(found) or "none of the [published ones](../models.md)"


def page(name: str, cost: Cost) -> str:
    """The page of a mixer."""
    mixer = MIXERS[name]
    title, address, paper = describe(name)
    parts = [
        f"# `{name}`",
        f"{title}.",
        (inspect.getdoc(mixer) or "").partition("\nArgs:")[0].strip(),
        "## Options",
        options(mixer),
        "## Cost",
        f"""\
| | parameters | MACs |
|---|---|---|
| `{SKELETON}` with it in every block, at {VARIANTS[SKELETON].image_size[0]} | {millions(cost.params)} | \
{millions(cost.macs)} |
| alone, {DIM} channels, {SIDES[0]}×{SIDES[0]} positions | | {millions(cost.alone[0])} |
| alone, {DIM} channels, {SIDES[1]}×{SIDES[1]} positions | | {millions(cost.alone[1])} |""",
        f"Growth with the number of positions: {cost.growth}.",
        "## Sources",
        f"Variants with it: {users(name)}.",
        f"{paper} <{address}>".strip() if address else paper,
    ]
    if MIXERS.fixed_grid(name):
        parts.insert(3, "Its weights belong to the grid of one `image_size`; `grid_mode` is for other sizes.")
    return "\n\n".join(part for part in parts if part) + "\n"


def millions(count: int) -> str:
    """A count in words of a table."""
    return f"{count / 1e6:,.1f} M"


def pages_and_table() -> tuple[dict[str, str], str]:
    """Pages by file name in `docs/mixers`, and the table of all mixers."""
    pages = {}
    table = ["| mixer | paper | params | MACs | growth |", "|---|---|---|---|---|"]
    for name in MIXERS:
        cost, (title, address, _) = cost_of(name), describe(name)
        pages[f"{name}.md"] = page(name, cost)
        paper = f"[{title}]({address})" if address else title
        size = f"{millions(cost.params)} | {millions(cost.macs)}"
        table.append(f"| [`{name}`](mixers/{name}.md) | {paper} | {size} | {cost.growth} |")
    return pages, "\n".join(table)
