"""Where the shards of a data set lie: parquet or tar files, on this machine or in object storage."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from metaformer.data.shards.remote import is_remote, list_names, open_address, read_bytes, size_and_tag
from metaformer.errors import DataError

INDEX: Final = "shards.json"
"""What `metaformer data shard` leaves at the root: formats, classes, and each shard's size and hash."""

CLASSES: Final = "classes.txt"
"""Class names, one a line, for tar files that others made."""

KINDS: Final = ("parquet", "tar")
_FORMAT: Final = "metaformer shards 1"


@dataclass(frozen=True)
class Shard:
    """One file of images."""

    file: str
    """Its place below the root."""
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shards:
    """The files that hold one split, in order."""

    root: str
    split: str
    kind: str
    """`parquet` or `tar`."""
    files: tuple[str, ...]
    """Their places below the root."""
    classes: tuple[str, ...] | None = None
    """Names of the numbers that stand in the files, where a list tells them."""
    known: tuple[Shard, ...] | None = field(default=None, repr=False)
    """What the index says of each file, where there is one."""

    @property
    def place(self) -> str:
        """What errors call the split."""
        return f"{self.root}/{self.split}"

    @property
    def addresses(self) -> list[str]:
        """Where the files are opened."""
        return [f"{self.root}/{file}" for file in self.files]


def find_shards(root: str | Path, split: str) -> Shards | None:
    """Look for the shards of a split; None where there are none.

    With an index its files are taken. Without one, these below the root, by name: `SPLIT/*.parquet`,
    `data/SPLIT-*.parquet`, `SPLIT-*.parquet`, and the same with tar.

    Raises:
        DataError: a damaged index, or one without this split; an address that cannot be opened.
    """
    place = str(root if is_remote(root) else Path(root).expanduser()).rstrip("/") or "/"
    if (index := read_index(place)) is not None:
        splits: dict[str, tuple[Shard, ...]] = index["splits"]
        if split not in splits:
            raise DataError(f"{place}: no split {split!r}; {INDEX} lists {', '.join(splits) or 'none'}")
        shards = splits[split]
        files = tuple(shard.file for shard in shards)
        return Shards(place, split, index["kind"], files, index["classes"], shards)
    for folder, start in ((f"{split}/", ""), ("data/", f"{split}-"), ("", f"{split}-")):
        names = [name for name in list_names(f"{place}/{folder}".rstrip("/")) if name.startswith(start)]
        for kind in KINDS:
            files = tuple(f"{folder}{name}" for name in names if name.endswith(f".{kind}"))
            if files:
                return Shards(place, split, kind, files, _listed_classes(place) if kind == "tar" else None)
    return None


def read_index(root: str) -> dict[str, Any] | None:
    """Read the index of a data set: its `kind`, its `classes` and the shards of its `splits`.

    Raises:
        DataError: it is damaged.
    """
    text = read_bytes(f"{root}/{INDEX}", missing=b"null")
    if text == b"null":
        return None
    try:
        values = json.loads(text)
        if values["format"] != _FORMAT or values["kind"] not in KINDS:
            raise ValueError(f"format {values['format']!r}, kind {values['kind']!r}")
        splits = {name: tuple(Shard(**row) for row in rows) for name, rows in values["splits"].items()}
        return {"kind": values["kind"], "classes": tuple(values["classes"]), "splits": splits}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{root}/{INDEX}: not an index of shards ({error}): shard the data again") from error


def index_text(
    kind: str, classes: Sequence[str], splits: Mapping[str, Sequence[Shard]], dropped: Mapping[str, list[str]]
) -> str:
    """Write what `read_index` reads, with the images that were left out."""
    rows = {name: [asdict(shard) for shard in shards] for name, shards in splits.items()}
    values = {"format": _FORMAT, "kind": kind, "classes": list(classes), "splits": rows}
    return json.dumps({**values, "dropped": dict(dropped)}, indent=1, ensure_ascii=False) + "\n"


def damaged_shards(shards: Shards) -> Iterator[str]:
    """Read every file and compare it with the index; tell what is wrong, a line for each."""
    for shard in shards.known or ():
        digest, size = hashlib.sha256(), 0
        try:
            with open_address(f"{shards.root}/{shard.file}") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    size += len(block)
        except DataError as error:
            yield str(error)
            continue
        if size != shard.bytes:
            yield f"{shards.root}/{shard.file}: {size} bytes, {INDEX} says {shard.bytes}"
        elif digest.hexdigest() != shard.sha256:
            yield f"{shards.root}/{shard.file}: its contents are not those that were written (sha256)"


def label_numbers(
    place: str,
    named: Sequence[str],
    present: Sequence[int],
    classes: Sequence[str] | None,
    allow_missing: bool,
) -> dict[int, int]:
    """Map the numbers in a split's files to labels, which are positions in `classes`.

    Args:
        place: what errors call the split.
        named: names of the numbers.
        present: numbers that occur.
        classes: the class list to follow; the names themselves when not given.
        allow_missing: take a split that lacks some of `classes`.

    Raises:
        DataError: a number without a name, a class that is not listed, or one without images.
    """
    if strange := [number for number in present if not 0 <= number < len(named)]:
        raise DataError(f"{place}: label {strange[0]} has no name; there are {len(named)} classes, from 0")
    wanted = named if classes is None else classes
    if twice := [name for name, count in Counter(wanted).items() if count > 1]:
        raise DataError(f"{place}: the class list names {twice[0]!r} more than once")
    label = {name: position for position, name in enumerate(wanted)}
    found = {named[number] for number in present}
    if unknown := sorted(found - set(label)):
        raise DataError(f"{place}: {unknown[0]!r} not among the {len(label)} known classes")
    missing = [name for name in wanted if name not in found]
    if classes is not None and missing and not allow_missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{place}: no images of {missing[0]!r}{more}; every class of the class list needs some"
        )
    return {number: label[named[number]] for number in present}


def tags(shards: Shards) -> list[str]:
    """A word for each file that changes with its contents.

    Files of this machine are looked at even where the index tells; in object storage each look costs time.

    Raises:
        DataError: a file is missing, or has another size than the index says.
    """
    words = []
    for place, (address, file) in enumerate(zip(shards.addresses, shards.files, strict=True)):
        known = shards.known[place] if shards.known is not None else None
        if known is not None and is_remote(address):
            words.append(known.sha256)
            continue
        size, tag = size_and_tag(address)
        if known is not None and size != known.bytes:
            raise DataError(f"{address}: {size} bytes, {INDEX} says {known.bytes}: copy {file} again")
        words.append(f"{size} {tag}" if known is None else known.sha256)
    return words


def _listed_classes(root: str) -> tuple[str, ...] | None:
    text = read_bytes(f"{root}/{CLASSES}", missing=b"").decode("utf-8", "replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip()) or None
