"""Write tables and mixers' pages from the library: `python docs/tables.py`; `--check` only compares."""

import sys
from itertools import groupby
from pathlib import Path

from mixer_pages import pages_and_table

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


def export_matrix() -> str:
    """What `python -m benchmarks.export_matrix --record` kept."""
    sys.path.append(str(FOLDER.parent))  # the benchmarks are no part of the package
    from benchmarks.export_matrix import RECORD, read_record, table

    about, rows = read_record(RECORD)
    processor, threads = about.pop("processor"), about.pop("threads")
    versions = ", ".join(f"{name} {version}" for name, version in about.items())
    return f"{table(rows)}\n\n{processor}, PyTorch on {threads} threads; {versions}."


def between_marks(name: str, table: str) -> str:
    """A document with its table renewed."""
    before, rest = (FOLDER / name).read_text().split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def documents() -> dict[Path, str]:
    """All that is written, by its file."""
    pages, mixers = pages_and_table()
    tables = {
        "models.md": models(),
        "export.md": exports(),
        "export-matrix.md": export_matrix(),
        "mixers.md": mixers,
    }
    return {
        **{FOLDER / name: between_marks(name, table) for name, table in tables.items()},
        **{FOLDER / "mixers" / name: page for name, page in pages.items()},
    }


def main() -> int:
    """Write the documents, or tell whether they are up to date."""
    fresh = documents()
    found = {file: file.read_text() for file in (*fresh, *FOLDER.glob("mixers/*.md")) if file.exists()}
    changed = sorted(file for file in {*fresh, *found} if fresh.get(file) != found.get(file))
    for file in changed:
        if "--check" in sys.argv:
            print(f"docs/{file.relative_to(FOLDER)} is out of date: python docs/tables.py", file=sys.stderr)
        elif file in fresh:
            file.parent.mkdir(exist_ok=True)
            file.write_text(fresh[file])
        else:  # of a mixer that is gone
            file.unlink()
    return int("--check" in sys.argv and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
