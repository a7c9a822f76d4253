"""The files of the page: a table that is made once, so that no address of a request leads to a file."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}
INDEX: Final = "index.html"


class StaticFile(NamedTuple):
    """Content and type of a file."""

    content: bytes
    type: str


def page_files() -> dict[str, StaticFile]:
    """All files of the page by name, such as `app.js` and `examples/five.png`."""
    found: dict[str, StaticFile] = {}
    _collect(files("metaformer.deploy.server") / "page", "", found)
    return found


def _collect(folder: Traversable, prefix: str, found: dict[str, StaticFile]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _collect(entry, f"{prefix}{entry.name}/", found)
        elif (kind := TYPES.get(f".{entry.name.rpartition('.')[2].lower()}")) is not None:
            found[prefix + entry.name] = StaticFile(entry.read_bytes(), kind)
