"""Fonts that have the characters of a text, or the text in letters that a font here has."""

import importlib.util
import logging
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from PIL import ImageFont

from metaformer.process import ASCII, one_line

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_log = logging.getLogger(__name__)
_SYSTEM: Final = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf")
"""Files that Pillow looks for in the system's folders of fonts."""
_MISSING: Final = "\U0010ffff"
"""A character that no font has."""
_LETTERS: Final = "абвгдеёжзийклмнопрстуфхцчшщъыьэюяіїєґ" + "αβγδεζηθικλμνξοπρσςτυφχψω"
_IN_LATIN: Final = (
    "a b v g d e yo zh z i y k l m n o p r s t u f kh ts ch sh shch ' y ' e yu ya i yi ye g "
    "a v g d e z i th i k l m n x o p r s s t y f ch ps o"
)
_LATIN: Final = dict(zip(_LETTERS, _IN_LATIN.split(), strict=True))
"""Cyrillic and Greek letters in Latin ones."""


def legible(text: str, size: int) -> tuple[str, Font]:
    """A text in one line, and a font of this size that has its characters.

    Where there is none, characters become Latin letters or their code points, with a warning. Signs of our
    own captions that the usual font lacks, such as ×, are written in ASCII: an image then has one font.
    """
    default = ImageFont.load_default(size)
    text = "".join(
        ASCII[char] if char in ASCII and not has_characters(default, char) else char
        for char in one_line(text)
    )
    if has_characters(default, text):
        return text, default
    for font in _fonts(frozenset(text), size):
        if has_characters(font, text):
            return text, font
    _warn_once()
    font = next(_fonts(frozenset(), size), default)
    return "".join(char if has_characters(font, char) else _latin(char) for char in text), font


def has_characters(font: Font, text: str) -> bool:
    """Whether a font has all characters of a text."""
    missing = _drawn(font, _MISSING)
    return all(char.isspace() or _drawn(font, char) != missing for char in set(text))


def _drawn(font: Font, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


def _fonts(characters: frozenset[str], size: int) -> Iterator[Font]:
    """Fonts that may have these characters: matplotlib's, the system's, those that fontconfig finds."""
    for name in _files(characters):
        try:
            yield ImageFont.truetype(name, size)
        except OSError:  # not there, or of a kind that has other sizes alone
            continue


@cache
def _files(characters: frozenset[str]) -> tuple[str, ...]:
    return (*_of_matplotlib(), *_SYSTEM, *_of_fontconfig(characters))


def _of_matplotlib() -> Iterator[str]:
    """DejaVu, which lies in the package; that is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        yield str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


def _of_fontconfig(characters: frozenset[str]) -> list[str]:
    """Files of the fonts that fontconfig knows for these characters, Noto's first."""
    program = shutil.which("fc-list")
    codes = " ".join(f"{ord(char):x}" for char in sorted(characters) if not char.isspace())
    if program is None or not codes:
        return []
    command = [program, f":charset={codes}", "--format", "%{file}\n"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = done.stdout.decode(errors="surrogateescape").splitlines()
    return sorted(set(found), key=lambda file: ("Noto" not in file, "Regular" not in file, file))[:20]


def _latin(char: str) -> str:
    """A character in ASCII: without its accents, by the table, else its code point."""
    plain = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    if plain:
        return plain
    base = unicodedata.normalize("NFD", char)[0]
    latin = _LATIN.get(base) or _LATIN.get(base.lower(), "").capitalize()
    return latin or ("" if unicodedata.combining(char) else f"<{ord(char):x}>")


@cache
def _warn_once() -> None:
    _log.warning(
        "no font here has all characters of the class names, which are drawn in Latin letters or as code "
        "points: install Noto fonts, or matplotlib for DejaVu"
    )
