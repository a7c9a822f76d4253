"""What the documents say, done.

The `sh` and `python` blocks of a page run in order, in an empty folder; `console` blocks do not run. Commands
are the installed script in forks; processes of their own are tested with the command line.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from warm import python

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = "```"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language and words after it, text) of each fenced block."""
    parts = page.read_text().split(f"\n{FENCE}")
    return [(part.split("\n", 1)[0], part.split("\n", 1)[1] + "\n") for part in parts[1::2]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    programs = tmp_path_factory.mktemp("bin")
    installed = str(Path(sys.executable).with_name("metaformer"))
    for name, command in (("metaformer", [*python(), installed]), ("python", python())):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language.startswith("python file="):
            Path(language.removeprefix("python file=")).write_text(text)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif language == "sh" and "make " not in text:  # make is what runs these tests
            done = subprocess.run(
                ["bash", "-ec", text],
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=280,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


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
