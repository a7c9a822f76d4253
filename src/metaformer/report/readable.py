"""How results print, at a prompt and in notebooks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import fields
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from metaformer.process import one_line, printable

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST: Final = 60
"""Characters of a value in `repr`."""
MOST: Final = 6
"""Items of a value in `repr`; of more, their number is shown."""
SIDE: Final = 400
"""Longer side of an image in a notebook, in pixels."""


class Readable(ABC):
    """Base of results: `print` and notebooks show `text()`, `repr` the fields in one line.

    Dataclasses of it are made with `repr=False`.
    """

    @abstractmethod
    def text(self) -> str:
        """The result for people."""

    def _images(self) -> "Iterable[Image]":
        """Images that notebooks show below the text."""
        return ()

    def __str__(self) -> str:
        return printable(self.text())

    def __repr__(self) -> str:
        own: Any = self
        shown = (f"{one.name}={brief(getattr(self, one.name))}" for one in fields(own) if one.repr)
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """The text as HTML, with images, as notebooks ask for it."""
        return f"<pre>{escape(str(self))}</pre>" + "".join(map(_image, self._images()))


def _image(image: "Image") -> str:
    from metaformer.report.blocks import data_uri

    small = image.convert("RGB")  # a copy
    small.thumbnail((SIDE, SIDE))
    return f'<img src="{data_uri(small)}" alt="">'


def brief(value: Any) -> str:
    """A value in one short line: of arrays the shape, of many items their number."""
    if isinstance(value, Real):
        return str(value) if isinstance(value, Integral) else f"{float(value):.4g}"
    if isinstance(value, Readable):
        return f"<{type(value).__name__}>"
    if hasattr(value, "shape"):
        return f"<{type(value).__name__} {'×'.join(map(str, value.shape)) or 'of a number'}>"
    return _brief_items(str(value) if isinstance(value, Path) else value)


def _brief_items(value: Any) -> str:
    if isinstance(value, list | tuple | set | frozenset | Mapping) and len(value) > MOST:
        return f"<{len(value):,} items>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{brief(key)}: {brief(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(brief, value)) + "," * (len(value) == 1) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(brief, value)) + "]"
    text = one_line(repr(value))
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 1]}…" if isinstance(value, str) else f"<{type(value).__name__}>"
