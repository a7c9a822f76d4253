"""Write the tables of docs/models.md from the library: `python docs/tables.py`; `--check` only compares."""

import sys
from itertools import groupby
from pathlib import Path

from metaformer.backbones.variants import UNAVAILABLE
from metaformer.bench.catalog import catalog
from metaformer.weights.sources import SOURCES

PAGE = Path(__file__).parent / "models.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def tables() -> str:
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


def main() -> int:
    """Rewrite the page between its marks, or tell whether it is up to date."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    fresh = f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"
    if "--check" in sys.argv:
        if page != fresh:
            print("docs/models.md is out of date: python docs/tables.py", file=sys.stderr)
        return int(page != fresh)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
