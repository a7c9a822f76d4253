"""What the documents say, done.

The `sh` and `python` blocks of a page run in order, in an empty folder; `console` blocks do not run. Commands
are the installed script in forks; processes of their own are tested with the command line.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from docs.notebooks import notebook
from warm import python

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW_NOTEBOOKS = ("detect", "export", "mixer", "segment", "serve")
NOTEBOOKS = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.stem in SLOW_NOTEBOOKS else [])
    for page in sorted((ROOT / "docs" / "notebooks").glob("*.md"))
]
FENCE = "```"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language and words after it, text) of each fenced block."""
    parts = page.read_text().split(f"\n{FENCE}")
    return [(part.split("\n", 1)[0], part.split("\n", 1)[1] + "\n") for part in parts[1::2]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PATH with `metaformer` and `python` in forks."""
    folder = tmp_path_factory.mktemp("bin")
    installed = str(Path(sys.executable).with_name("metaformer"))
    for name, command in (("metaformer", [*python(), installed]), ("python", python())):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, programs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language.startswith("python file="):
            Path(language.removeprefix("python file=")).write_text(text)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif language == "sh" and "make " not in text:  # make is what runs these tests
            done = subprocess.run(
                ["bash", "-ec", text],
                env={**os.environ, "PATH": programs},
                capture_output=True,
                text=True,
                timeout=280,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_pages_write_the_same_demo_data() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    assert set(re.findall(r"^metaformer data demo demo-data(.*)", text, re.MULTILINE)) == {
        " --per-class 20 --copies 1 --scenes 24 8"
    }
    assert set(re.findall(r"^metaformer\.write_demo_data\((.*)\)", text, re.MULTILINE)) == {
        '"demo-data", per_class=20, copies=1, scenes=(24, 8)'
    }


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all notebooks, which share data and a run."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_every_notebook_runs(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    names: dict[str, Any] = {}
    try:
        for cell in notebook(page.read_text())["cells"]:
            first, _, rest = cell["source"].partition("\n")
            if first.startswith("%%writefile "):
                Path(first.removeprefix("%%writefile ")).write_text(rest)
            elif cell["cell_type"] == "code":
                run_cell(cell["source"], names)
    finally:
        if "server" in names:
            names["server"].kill()


def run_cell(source: str, names: dict[str, Any]) -> None:
    """Run a cell, and show its last value if that is an image, as Jupyter does."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        assert not isinstance(value, Image.Image) or value._repr_png_()


def test_notebooks_are_valid_and_say_all_that_their_pages_say() -> None:
    for page in sorted((ROOT / "docs/notebooks").glob("*.md")):
        made = notebook(page.read_text())
        assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
        kinds = [cell["cell_type"] for cell in made["cells"]]
        assert 5 <= kinds.count("code") <= 9 and kinds[0] == "markdown", page
        assert len({cell["id"] for cell in made["cells"]}) == len(kinds)
        for cell in made["cells"]:
            keys = {"code": {"execution_count", "outputs"}, "markdown": set()}[cell["cell_type"]]
            assert set(cell) == {"id", "cell_type", "metadata", "source"} | keys
            assert "```python" not in cell["source"] and "](.." not in cell["source"]
        text = "\n".join(cell["source"] for cell in made["cells"])
        assert all(line in text for line in page.read_text().splitlines() if line.startswith("#"))


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted((ROOT / "docs").glob("*/*.md")), ROOT / "CONTRIBUTING.md"],
    ids=lambda page: page.name,
)
def test_links_lead_somewhere(page: Path) -> None:
    for part in page.read_text().split("](")[1:]:
        target = part.split(")")[0]
        if "://" not in target:
            assert (page.parent / target.split("#")[0]).exists(), target


def test_tables_and_mixers_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [*python(), ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_errors_of_the_troubleshooting_page_exist() -> None:
    code = " ".join(file.read_text() for file in sorted((ROOT / "src").rglob("*.py")))
    headings = (ROOT / "docs" / "troubleshooting.md").read_text().split("\n### `")[1:]
    quoted = [heading.partition("`")[0] for heading in headings]
    assert len(quoted) >= 20
    assert [words for words in quoted if words not in code] == []


def test_the_site_has_every_page(tmp_path: Path) -> None:
    site = ROOT / "docs" / "site.py"
    done = subprocess.run([*python(), site, tmp_path / "site"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.md")}
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = [page for section in sections for value in section.values() for page in _pages(value)]
    assert sorted(named) == sorted(page for page in written if not page.startswith(FROM_TABLES))
    notebooks = {path.stem for path in (tmp_path / "site/notebooks").glob("*.ipynb")}
    assert notebooks == {page.stem for page in (ROOT / "docs/notebooks").glob("*.md")}
    (tmp_path / "built").mkdir()
    (tmp_path / "built/index.html").write_text('<a id="top" href="#top"></a><a href="other.html#there"></a>')
    done = subprocess.run([*python(), site, "--check", tmp_path / "built"], capture_output=True, text=True)
    assert (
        done.returncode == 1 and "index.html: other.html#there" in done.stderr and "#top" not in done.stderr
    )


FROM_TABLES = ("mixers/", "models/")
"""Folders of pages that a table links."""


def _pages(value: str | list[dict[str, str]]) -> list[str]:
    return [value] if isinstance(value, str) else [page for entry in value for page in entry.values()]


OTHERS = ("gradio_app.py", "ray_predict.py")
"""Examples that need what `make test` does not install; `make test-ray` runs the last one."""
EXAMPLES = [file for file in sorted((ROOT / "examples").glob("*.py")) if file.name not in OTHERS]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_runs(example: Path, tmp_path: Path) -> None:
    words = ["1", "1"] if "speed" in example.name else []
    done = subprocess.run(
        [*python(), example, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout, done.stderr
