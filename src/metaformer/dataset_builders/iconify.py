"""Icon sets of npm's package @iconify/json, https://github.com/iconify/icon-sets: read and credited.

What the tarball holds was written by strangers: sizes, names and values are bounded.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final

from metaformer.dataset_builders.drawing import Drawing, Side
from metaformer.errors import DataError
from metaformer.serialize import Text, decode, errors_at, from_dict, parse_json
from metaformer.storage import open_regular

LARGEST_SET: Final = 256 << 20
"""Bytes of a set's JSON file."""
LARGEST_PACKAGE: Final = 2 << 30
"""Bytes of the unpacked package, which has half a gigabyte."""
MOST_MEMBERS: Final = 20_000
"""Files in it."""
_PIECE: Final = 1 << 20
_DEPTH: Final = 8
"""Levels of nesting of a set's JSON."""
PERMISSIVE: Final = frozenset(
    ("MIT", "Apache-2.0", "ISC", "CC0-1.0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Unlicense")
)
"""Licenses, by SPDX, of sets that are used: copies and changes are free, the notice is kept."""
ATTRIBUTION: Final = "ATTRIBUTION.md"
"""File that says whom to thank for the drawings of a data set."""
_NAME: Final = r"[a-z0-9][a-z0-9-]{0,99}"
_MEMBER: Final = re.compile(rf"package/json/({_NAME})\.json")
_DAMAGED: Final = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError),
    RecursionError,  # tarfile goes down a level for each header that describes the next one
)


@dataclass(frozen=True)
class Author:
    """Who drew a set."""

    name: Text
    url: Text = ""


@dataclass(frozen=True)
class License:
    """What may be done with a set."""

    title: Text
    spdx: Text = ""
    url: Text = ""


@dataclass(frozen=True)
class SetInfo:
    """What a set says of itself."""

    name: Text
    author: Author
    license: License
    category: Text = ""
    palette: bool = False
    """Whether its drawings have colors of their own."""


@dataclass(frozen=True)
class IconSet:
    """A set of icons."""

    prefix: str
    """Its name in addresses, such as `mdi`."""
    info: SetInfo
    icons: dict[str, dict[str, Any]] = field(repr=False)
    """Fields of each icon by name, which `drawing` decodes."""
    size: tuple[float, float] = (16.0, 16.0)
    """Width and height of icons that say nothing else."""

    def names(self) -> list[str]:
        """Names of the icons that are shown, in order."""
        return [name for name in sorted(self.icons) if re.fullmatch(_NAME, name)]

    def drawing(self, name: str) -> Drawing:
        """An icon.

        Raises:
            DataError: a value of another type or out of range.
        """
        fields = {"width": self.size[0], "height": self.size[1], **self.icons[name]}
        with errors_at(f"{self.prefix}:{name}", DataError):
            return from_dict(Drawing, fields, others=True)


def read_sets(tarball: Path, wanted: Callable[[SetInfo], bool]) -> Iterator[IconSet]:
    """Sets of a package as `npm pack @iconify/json` fetches it, in order of their names.

    Args:
        tarball: the .tgz file.
        wanted: which sets to give.

    Raises:
        DataError: no such package, a damaged one, or values out of range.
    """
    found = 0
    with (
        open_regular(tarball) as stream,
        _errors(tarball),
        _Bounded(fileobj=stream) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r:") as archive,
    ):
        for number, member in enumerate(archive):
            if number > MOST_MEMBERS:
                raise DataError(f"has more than {MOST_MEMBERS:,} files")
            name = _MEMBER.fullmatch(member.name)
            if name is None or not member.isreg() or member.issparse():
                continue
            body = archive.extractfile(member)
            assert body is not None  # as of every regular file
            found += 1
            one = _decode(body.read(), name[1], f"{tarball}, {member.name}")
            if wanted(one.info):
                yield one
        while unpacked.read(_PIECE):  # gzip's checksum is behind the archive's end
            pass
    if not found:
        raise DataError(f"{tarball}: holds no icon sets: fetch the package by npm pack @iconify/json")


def _decode(content: bytes, prefix: str, where: str) -> IconSet:
    with errors_at(where, DataError):
        values = decode(dict[str, Any], parse_json(content, where, depth=_DEPTH), "the file")
        info = decode(dict[str, Any], values.get("info"), "info")
        for name, kind in (("author", Author), ("license", License)):
            info[name] = from_dict(kind, info.get(name), name, others=True)
        icons = decode(dict[str, dict[str, Any]], values.get("icons"), "icons")
        shown = {name: icon for name, icon in icons.items() if not icon.get("hidden")}
        size = tuple(decode(Side, values.get(side, 16.0), side) for side in ("width", "height"))
        return IconSet(prefix, from_dict(SetInfo, info, "info", others=True), shown, (size[0], size[1]))


class _Bounded(gzip.GzipFile):
    """Decompressed bytes of a tarball, of which neither one read nor the whole exceeds a bound."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LARGEST_SET:
            raise DataError(f"a file in it is larger than the {LARGEST_SET:,} bytes allowed")
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > LARGEST_PACKAGE:
            raise DataError(f"unpacked it is larger than the {LARGEST_PACKAGE:,} bytes allowed")


@contextmanager
def _errors(tarball: Path) -> Iterator[None]:
    """Let every error of a damaged archive be a DataError that names it."""
    try:
        yield
    except DataError as error:
        if str(tarball) in str(error):
            raise
        raise DataError(f"{tarball}: {error}") from error
    except _DAMAGED as error:
        raise DataError(f"{tarball}: is no npm package, or damaged ({error}): fetch it again") from error


def slug(name: str) -> str:
    """A name in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def package_settings(tarball: Path) -> dict[str, str]:
    """Name and hash of the package that a data set is made from."""
    with open_regular(tarball) as stream:
        return {"package": tarball.name, "package_sha256": file_digest(stream, "sha256").hexdigest()}


def attribution(infos: Mapping[str, SetInfo], prefixes: Sequence[str]) -> str:
    """Who drew what under which license, as Markdown.

    Args:
        infos: what the sets say of themselves.
        prefixes: the set of each drawing.
    """
    lines = [
        "# Whose drawings these are",
        "",
        "From the npm package @iconify/json; rendered, otherwise unchanged.",
        "",
    ]
    lines += ["| set | author | license | images |", "|---|---|---|---|"]
    for prefix, count in sorted(Counter(prefixes).items()):
        info = infos[prefix]
        author = _link(info.author.name, info.author.url)
        terms = _link(info.license.title, info.license.url)
        lines.append(f"| {_cell(info.name)} (`{prefix}`) | {author} | {terms} | {count} |")
    return "\n".join(lines) + "\n"


def _link(name: str, url: str) -> str:
    plain = re.fullmatch(r"https?://[^\s()<>\[\]|]+", url)
    return f"[{_cell(name)}]({url})" if plain else _cell(name)


def _cell(text: str) -> str:
    return re.sub(r"([\\|\[\]<>`*_])", r"\\\1", text)
