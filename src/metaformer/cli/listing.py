"""`metaformer list [FILTER]`, and tables as plain text."""

import json
from collections.abc import Sequence
from typing import Any

from metaformer.cli.parser import Parser
from metaformer.errors import UnknownName
from metaformer.process import one_line


def run(argv: list[str]) -> int:
    """Print a list."""
    parser = Parser("list", "Models and published weights, recipes, mixers.", "metaformer list 'caformer_*'")
    add = parser.add_argument
    add("filter", nargs="?", default="", metavar="FILTER", help="part of a name, or a pattern with * and ?")
    kind = parser.add_mutually_exclusive_group().add_argument
    kind("--recipes", action="store_true", help="training recipes")
    kind("--segmenters", action="store_true", help="published segmentation networks")
    kind("--detectors", action="store_true", help="published detectors")
    kind("--mixers", action="store_true", help="token mixers, with their options")
    add("--json", action="store_true", help="print JSON")
    parser.add_import()
    args = parser.parse_args(argv)
    parser.run_import(vars(args))
    kinds = {
        "recipes": _recipes,
        "segmenters": _segmenters,
        "detectors": _detectors,
        "mixers": _mixers,
    }
    rows = next((rows for kind, rows in kinds.items() if getattr(args, kind)), _models)(args.filter)
    print(json.dumps(rows, indent=1) if args.json else _table(rows))
    return 0


def _models(pattern: str) -> list[dict[str, Any]]:
    from metaformer.backbones.variants import UNAVAILABLE
    from metaformer.bench.catalog import catalog, matches

    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "family": entry.family,
            "params": entry.params,
            "macs": entry.macs,
            "size": entry.image_size,
            "top1": entry.top1,
            "classes": entry.num_classes,
        }
        for entry in catalog(pattern)
    ]
    unavailable = {name: why for name, why in UNAVAILABLE.items() if matches(name, pattern)}
    return rows + [{"name": name, "unavailable": why} for name, why in unavailable.items()]


def _recipes(pattern: str) -> list[dict[str, Any]]:
    from metaformer.recipes import RECIPES

    found = [recipe for name, recipe in RECIPES.items() if pattern in name]
    if not found:
        raise UnknownName("recipe", pattern, RECIPES)
    return [
        {
            "recipe": r.name,
            "top1": r.top1,
            "miou": r.miou,
            "box_ap": r.box_ap[0] if r.box_ap else None,
            "epochs": None if r.config.schedule.steps else r.epochs,
            "steps": r.config.schedule.steps,
            "about": r.summary,
        }
        for r in found
    ]


def _segmenters(pattern: str) -> list[dict[str, Any]]:
    from metaformer.factory import list_segmenters

    return _dense("segmenter", pattern, list_segmenters(pretrained=True), ("miou",))


def _detectors(pattern: str) -> list[dict[str, Any]]:
    from metaformer.factory import list_detectors

    return _dense("detector", pattern, list_detectors(pretrained=True), ("box_ap", "mask_ap"))


def _dense(kind: str, pattern: str, names: list[str], metrics: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each published network of a kind: what it is of, and its published metrics."""
    import torch

    from metaformer.bench.catalog import matches
    from metaformer.factory import create_network
    from metaformer.weights.sources import SOURCES

    found = [SOURCES[name] for name in names if matches(name, pattern)]
    if not found:
        raise UnknownName(kind, pattern, names)
    rows = []
    for source in found:
        with torch.device("meta"):
            model = create_network(source.name, source.num_classes)
        params = sum(parameter.numel() for parameter in model.parameters())
        row = {kind: source.name, "params": params, "data": source.data, "classes": source.num_classes}
        rows.append(row | {metric: source.metrics.get(metric) for metric in metrics})
    return rows


def _mixers(pattern: str) -> list[dict[str, Any]]:
    import inspect

    from metaformer.mixers import MIXERS

    rows = []
    for name in (name for name in MIXERS if pattern in name):
        parameters = inspect.signature(MIXERS[name]).parameters.values()
        options = [f"{p.name}={p.default!r}" for p in parameters if p.default is not p.empty]
        about = (inspect.getdoc(MIXERS[name]) or "").partition("\n")[0]
        rows.append({"mixer": name, "options": ", ".join(options), "about": about})
    if not rows:
        raise UnknownName("mixer", pattern, MIXERS)
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    plain = [row for row in rows if "unavailable" not in row]
    lines = []
    if plain:
        heads = list(plain[0])
        lines.append(table(heads, [[_cell(head, row[head]) for head in heads] for row in plain]))
    missing = [row for row in rows if "unavailable" in row]
    if missing:
        lines += ["", "not available:", *(f"  {row['name']}: {row['unavailable']}" for row in missing)]
    return "\n".join(lines)


def _cell(head: str, value: Any) -> str:
    if value is None:
        return "-"
    if head == "params":
        return f"{value / 1e6:.1f}M"
    return f"{value / 1e9:.2f}G" if head == "macs" else str(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns."""
    lines = [[one_line(cell) for cell in line] for line in (heads, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
