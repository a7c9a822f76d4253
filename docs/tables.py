"""Write tables and the pages of mixers and families: `python docs/tables.py`; `--check` only compares."""

import sys
from pathlib import Path

import family_pages
import mixer_pages

from metaformer.tasks import TASKS

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def exports() -> str:
    """Inputs and outputs of the exported files of each task."""
    text = ["| task | inputs | outputs | options |", "|---|---|---|---|"]
    for spec in TASKS.values():
        inputs = "`images`, `sizes`" if spec.export.takes_sizes else "`images`"
        outputs = ", ".join(f"`{name}` {shape}" for name, shape in spec.export.outputs.items())
        options = ", ".join(f"`--{name.replace('_', '-')}`" for name in sorted(spec.export.options)) or "–"
        text.append(f"| {spec.title} | {inputs} | {outputs} | {options} |")
    return "\n".join(text)


def between_marks(name: str, table: str) -> str:
    """A document with its table renewed."""
    before, rest = (FOLDER / name).read_text().split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def documents() -> dict[Path, str]:
    """All that is written, by its file."""
    mixers, table_of_mixers = mixer_pages.pages_and_table()
    families, tables_of_families = family_pages.pages_and_tables()
    tables = {"models.md": tables_of_families, "export.md": exports(), "mixers.md": table_of_mixers}
    return {
        **{FOLDER / name: between_marks(name, table) for name, table in tables.items()},
        **{FOLDER / "mixers" / name: page for name, page in mixers.items()},
        **{FOLDER / "models" / name: page for name, page in families.items()},
    }


def main() -> int:
    """Write the documents, or tell whether they are up to date."""
    fresh = documents()
    found = {
        file: file.read_text()
        for file in (*fresh, *FOLDER.glob("mixers/*.md"), *FOLDER.glob("models/*.md"))
        if file.exists()
    }
    changed = sorted(file for file in {*fresh, *found} if fresh.get(file) != found.get(file))
    for file in changed:
        if "--check" in sys.argv:
            print(f"docs/{file.relative_to(FOLDER)} is out of date: python docs/tables.py", file=sys.stderr)
        elif file in fresh:
            file.parent.mkdir(exist_ok=True)
            file.write_text(fresh[file])
        else:  # of a mixer or a family that is gone
            file.unlink()
    return int("--check" in sys.argv and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
