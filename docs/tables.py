"""Write the tables of the documents from the library: `python docs/tables.py`; `--check` only compares."""

import sys
from itertools import groupby
from pathlib import Path

from metaformer.backbones.variants import UNAVAILABLE
from metaformer.bench.catalog import catalog
from metaformer.tasks import TASKS
from metaformer.weights.sources import SOURCES

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def models() -> str:
    """One table a family, then what is not available."""
    text = []
    for family, entries in groupby(catalog(), key=lambda entry: entry.family):
        text += [
            f"### {family}",
            "",
            "| name | params | MACs | input | top-1 | license |",
            "|---|---|---|---|---|---|",
        ]
        for e in entries:
            top1 = "–" if e.top1 is None else f"{e.top1:.1f}"
            license = SOURCES[e.name].license if e.tag else "–"
            size = f"{e.params / 1e6:.1f} M | {e.macs / 1e9:.2f} G | {e.image_size}"
            text.append(f"| `{e.name}` | {size} | {top1} | {license} |")
        text.append("")
    text += ["### Not available", "", *(f"- `{name}`: {reason}." for name, reason in UNAVAILABLE.items())]
    return "\n".join(text)


def exports() -> str:
    """Inputs and outputs of the exported files of each task."""
    text = ["| task | inputs | outputs | options |", "|---|---|---|---|"]
    for spec in TASKS.values():
        inputs = "`images`, `sizes`" if spec.export.takes_sizes else "`images`"
        outputs = ", ".join(f"`{name}` {shape}" for name, shape in spec.export.outputs.items())
        options = ", ".join(f"`--{name.replace('_', '-')}`" for name in sorted(spec.export.options)) or "–"
        text.append(f"| {spec.title} | {inputs} | {outputs} | {options} |")
    return "\n".join(text)


PAGES = {"models.md": models, "export.md": exports}


def main() -> int:
    """Rewrite the pages between their marks, or tell whether they are up to date."""
    stale = 0
    for name, tables in PAGES.items():
        page = (FOLDER / name).read_text()
        before, rest = page.split(BEGIN)
        fresh = f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"
        if "--check" not in sys.argv:
            (FOLDER / name).write_text(fresh)
        elif page != fresh:
            print(f"docs/{name} is out of date: python docs/tables.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
