"""`metaformer list [FILTER]`."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from metaformer.cli.parser import Parser
from metaformer.cli.table import table
from metaformer.errors import UnknownName


def run(argv: list[str]) -> int:
    """Print what there is."""
    parser = Parser("list", "Models and published weights, recipes, mixers.", "metaformer list 'caformer_*'")
    add = parser.add_argument
    add("filter", nargs="?", default="", metavar="FILTER", help="part of a name, or a pattern with * and ?")
    add("--recipes", action="store_true", help="what `metaformer train` can follow")
    add("--segmenters", action="store_true", help="published segmentation networks")
    add("--detectors", action="store_true", help="published detectors")
    add("--mixers", action="store_true", help="token mixers, with their options")
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
    from metaformer.factory import create_segmenter
    from metaformer.weights.segmentation_sources import SEGMENTATION_SOURCES

    figures = {name: {"miou": source.miou} for name, source in SEGMENTATION_SOURCES.items()}
    return _dense("segmenter", pattern, SEGMENTATION_SOURCES, create_segmenter, figures)


def _detectors(pattern: str) -> list[dict[str, Any]]:
    from metaformer.factory import create_detector
    from metaformer.weights.detection_sources import DETECTION_SOURCES

    figures = {
        name: {"box_ap": source.box_ap[0], "mask_ap": source.mask_ap[0] if source.mask_ap else None}
        for name, source in DETECTION_SOURCES.items()
    }
    return _dense("detector", pattern, DETECTION_SOURCES, create_detector, figures)


def _dense(
    kind: str,
    pattern: str,
    sources: Mapping[str, Any],
    create: Callable[..., Any],
    figures: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """A row for each published network of a kind: what it is of, and its published figures."""
    import torch

    from metaformer.bench.catalog import matches

    found = {name: source for name, source in sources.items() if matches(name, pattern)}
    if not found:
        raise UnknownName(kind, pattern, sources)
    rows = []
    for name, source in found.items():
        with torch.device("meta"):
            model = create(name, num_classes=source.num_classes)
        params = sum(parameter.numel() for parameter in model.parameters())
        row = {kind: name, "params": params, "data": source.data, "classes": source.num_classes}
        rows.append(row | figures[name])
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
