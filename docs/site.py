"""Source of the site: the pages of docs/, and those that are made from code, in one folder.

`python docs/site.py FOLDER` writes it; `python docs/site.py --check SITE` looks for dead links in the site.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields, is_dataclass
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urldefrag

import notebooks
from docstring_parser import parse_from_object

import metaformer
from metaformer.cli import COMMANDS
from metaformer.cli import main as run_command
from metaformer.config import TrainConfig

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
MOVED: Final = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside docs/ -> their places on the site."""
SUBJECTS: Final = {
    "Networks": ("factory", "backbones", "models", "mixers", "weights"),
    "Training and results": ("recipes", "config", "tasks", "training", "inference", "errors"),
    "Deployment": ("deploy",),
    "Studies": ("study",),
}
"""Page of the Python interface -> the packages whose public names it lists."""
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def write(folder: Path) -> None:
    """Write all pages to a new folder, or anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS / "img", folder / "img")
    found = (page.relative_to(ROOT).as_posix() for page in DOCS.rglob("*.md"))
    pages = {**{page: page.removeprefix("docs/") for page in found}, **MOVED}
    for source, target in pages.items():
        text = (ROOT / source).read_text()
        text = _LINK.sub(lambda link, page=source: _moved(link, page, pages), text)
        if target.startswith("notebooks/"):
            file = Path(target).with_suffix(".ipynb").name
            text = text.replace("\n", f"\n\n[Download as a notebook]({file})\n", 1)
        (folder / target).parent.mkdir(exist_ok=True)
        (folder / target).write_text(text)
    notebooks.write(folder / "notebooks")
    (folder / "commands.md").write_text(commands())
    (folder / "configuration.md").write_text(configuration())
    for title, packages in SUBJECTS.items():
        name = title.lower().replace(" ", "-")
        (folder / f"python-{name}.md").write_text(interface(title, packages))


def _moved(link: re.Match[str], page: str, pages: dict[str, str]) -> str:
    """A link of a page as the site has it; to what the site does not have, the file's name alone."""
    image, label, address, anchor = link.groups()
    if "://" in address:
        return link[0]
    target = ((ROOT / page).parent / address).resolve().relative_to(ROOT).as_posix()
    if image or target in pages:
        place = pages.get(target, target.removeprefix("docs/"))
        near = os.path.relpath(place, Path(pages[page]).parent)
        return f"{image}[{label}]({near}{anchor or ''})"
    return f"`{target}`" if label.strip("`") in target else f"{label} (`{target}`)"


def commands() -> str:
    """What each command's `--help` prints."""
    text = ["# Commands", "", "`metaformer COMMAND --help` prints these."]
    for name, command in COMMANDS.items():
        printed = StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            run_command([name, "--help"])
        text += ["", f"## {name}", "", f"{command.help[0].upper()}{command.help[1:]}.", ""]
        text += ["```text", printed.getvalue().strip(), "```"]
    return "\n".join(text) + "\n"


def configuration() -> str:
    """A table for every section of a training run's configuration."""
    text = [
        "# Configuration of a run",
        "",
        "Each is an option of `metaformer train`, as in `--optim.lr 1e-3`, and may stand in a YAML file.",
    ]
    config = TrainConfig()
    own = [field.name for field in fields(TrainConfig) if not is_dataclass(getattr(config, field.name))]
    text += _table("The run", TrainConfig, own)
    for field in fields(TrainConfig):
        section = getattr(config, field.name)
        if is_dataclass(section):
            names = [one.name for one in fields(section)]
            text += _table(f"`{field.name}`", type(section), names)
    return "\n".join(text) + "\n"


def _table(title: str, kind: Any, names: list[str]) -> Iterator[str]:
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(kind).params}
    yield from ("", f"## {title}", "", "| option | default | meaning |", "|---|---|---|")
    for field in fields(kind):
        if field.name in names:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            shown = "" if default is MISSING else f"`{default}`"
            meaning = texts[field.name].replace("|", "\\|")
            yield f"| `{field.name}` | {shown} | {meaning} |"


def interface(title: str, packages: tuple[str, ...]) -> str:
    """A page of the public names of some packages, for mkdocstrings."""
    text = [f"# {title}", "", "All names are imported from `metaformer`."]
    for module, names in metaformer.PUBLIC.items():
        if module.split(".")[0] in packages:
            text += [line for name in names for line in ("", f"::: metaformer.{module}.{name}")]
    return "\n".join(text) + "\n"


class _Page(HTMLParser):
    """Anchors of a page, and where it links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links = {""}, list[str]()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name in ("href", "src") and value and "://" not in value and not value.startswith("data:"):
                self.links.append(value)


def dead_links(site: Path) -> Iterator[str]:
    """Links of a built site that lead to no file, or to no anchor of a page."""
    pages = {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            target = (path.parent / unquote(address)).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (target in pages and unquote(anchor) not in pages[target].anchors):
                yield f"{path.relative_to(site)}: {link}"


def main() -> int:
    """Write the pages, or tell which links are dead."""
    *check, folder = sys.argv[1:]
    if not check:
        write(Path(folder))
        return 0
    dead = list(dead_links(Path(folder).resolve()))
    print("\n".join(f"dead link in {one}" for one in dead) or "no dead links", file=sys.stderr)
    return int(bool(dead))


if __name__ == "__main__":
    sys.exit(main())
