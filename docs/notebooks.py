"""The pages of docs/notebooks as files for Jupyter: `python docs/notebooks.py FOLDER` writes them."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PAGES: Final = Path(__file__).parent / "notebooks"
_CODE: Final = re.compile(r"^```python(?: file=(\S+))?\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[([^\]]*)\]\((?!#|\w+:)[^)]*\)")
"""A link to another page, which the file does not have beside it."""


def notebook(text: str) -> dict[str, Any]:
    """A page as nbformat 4.5 has it: a cell for each Python block and for the Markdown between."""
    cells = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(_cells(text))]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _cells(text: str) -> Iterator[dict[str, Any]]:
    end = 0
    for block in _CODE.finditer(text):
        yield from _markdown(text[end : block.start()])
        file, code = block.groups()
        code = f"%%writefile {file}\n{code}" if file else code
        yield {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": code}
        end = block.end()
    yield from _markdown(text[end:])


def _markdown(text: str) -> Iterator[dict[str, Any]]:
    if text.strip():
        yield {"cell_type": "markdown", "metadata": {}, "source": _LINK.sub(r"\1", text.strip())}


def write(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(PAGES.glob("*.md")):
        text = json.dumps(notebook(page.read_text()), indent=1, ensure_ascii=False)
        (folder / f"{page.stem}.ipynb").write_text(f"{text}\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
