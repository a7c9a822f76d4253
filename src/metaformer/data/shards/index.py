"""The shards of a data set: parquet or tar files, and the index `shards.json` that lists them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

from metaformer.data.class_lists import MAX_CLASSES, check_class_names
from metaformer.data.shards.remote import is_remote, list_folder, open_file, read_bytes, size_and_version
from metaformer.errors import ConfigError, DataError
from metaformer.serialize import NATURAL, OneOf, Serializable, Text, errors_at, parse_json, shown, validate
from metaformer.storage import as_path

INDEX: Final = "shards.json"
"""What `metaformer data shard` writes at the root: format, classes, and each shard's size and hash."""

CLASSES: Final = "classes.txt"
"""Class names, one a line, for tar files without an index."""

FORMATS: Final = ("parquet", "tar")
_VERSION: Final = "metaformer shards 1"


@dataclass(frozen=True)
class Shard:
    """One file of images, as the index has it."""

    file: Text
    """Path below the root."""
    images: Annotated[int, NATURAL]
    bytes: Annotated[int, NATURAL]
    sha256: Text

    def __post_init__(self) -> None:
        validate(self)
        path = PurePosixPath(self.file)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ConfigError(f"file: {self.file!r} does not lie below the root")
        if self.images > self.bytes:
            raise ConfigError(f"images: {self.images:,} cannot lie in {self.bytes:,} bytes")


@dataclass(frozen=True)
class _Index(Serializable):
    """Contents of an index."""

    format: Annotated[str, OneOf((_VERSION,))]
    kind: Annotated[str, OneOf(FORMATS)]
    classes: tuple[Text, ...]
    splits: dict[Text, tuple[Shard, ...]]
    dropped: Any = None


@dataclass(frozen=True)
class Shards:
    """The files that hold one split, in order."""

    root: str
    """A path or fsspec URL."""
    split: str
    kind: str
    """`parquet` or `tar`."""
    files: tuple[str, ...]
    """Paths below the root."""
    classes: tuple[str, ...] | None = None
    """Names of the class numbers in the files, where the index or `classes.txt` lists them."""
    index: tuple[Shard, ...] | None = field(default=None, repr=False)
    """The index's entry of each file, where there is an index."""

    @property
    def name(self) -> str:
        """Name of the split in errors."""
        return f"{self.root}/{self.split}"

    @property
    def urls(self) -> list[str]:
        """Path or URL of each file."""
        return [f"{self.root}/{file}" for file in self.files]


def find_shards(root: str | Path, split: str) -> Shards | None:
    """Shards of a split; None where there are none.

    With an index these are the files that it lists, else the files below the root that are named
    `SPLIT/*.parquet`, `data/SPLIT-*.parquet` or `SPLIT-*.parquet`, or the same with tar.

    Raises:
        DataError: a damaged index, or one without this split; a URL that cannot be opened.
    """
    url = str(root if is_remote(root) else as_path(root, "root", DataError, expand=True)).rstrip("/") or "/"
    if (index := read_index(url)) is not None:
        splits: dict[str, tuple[Shard, ...]] = index["splits"]
        if split not in splits:
            raise DataError(f"{url}: no split {split!r}; {INDEX} lists {', '.join(splits) or 'none'}")
        shards = splits[split]
        files = tuple(shard.file for shard in shards)
        return Shards(url, split, index["kind"], files, index["classes"], shards)
    for folder, start in ((f"{split}/", ""), ("data/", f"{split}-"), ("", f"{split}-")):
        names = [name for name in list_folder(f"{url}/{folder}".rstrip("/")) if name.startswith(start)]
        for kind in FORMATS:
            files = tuple(f"{folder}{name}" for name in names if name.endswith(f".{kind}"))
            if files:
                return Shards(url, split, kind, files, _read_classes(url) if kind == "tar" else None)
    return None


def read_index(root: str) -> dict[str, Any] | None:
    """Index of a data set: its `kind`, its `classes` and the shards of its `splits`; None without one.

    Raises:
        DataError: it is damaged.
    """
    text = read_bytes(f"{root}/{INDEX}", missing=b"null")
    if text == b"null":
        return None
    where = f"{root}/{INDEX}: not an index of shards, shard the data again"
    with errors_at(where, DataError):
        index = _Index.from_dict(parse_json(text, where))
        if empty := [name for name, shards in index.splits.items() if not shards]:
            raise ConfigError(f"splits.{empty[0]}: lists no files")
    return {"kind": index.kind, "classes": index.classes, "splits": index.splits}


def index_text(
    kind: str, classes: Sequence[str], splits: Mapping[str, Sequence[Shard]], dropped: Mapping[str, list[str]]
) -> str:
    """Contents of an index, with the images that were left out."""
    rows = {name: [asdict(shard) for shard in shards] for name, shards in splits.items()}
    values = {"format": _VERSION, "kind": kind, "classes": list(classes), "splits": rows}
    return json.dumps({**values, "dropped": dict(dropped)}, indent=1, ensure_ascii=False) + "\n"


def damaged_shards(shards: Shards) -> Iterator[str]:
    """Compare every file's size and hash with the index; yields one message per difference."""
    for shard in shards.index or ():
        url = f"{shards.root}/{shard.file}"
        digest, size = hashlib.sha256(), 0
        try:
            with open_file(url) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    size += len(block)
        except DataError as error:
            yield str(error)
            continue
        if size != shard.bytes:
            yield f"{url}: {size} bytes, {INDEX} says {shard.bytes}"
        elif digest.hexdigest() != shard.sha256:
            yield f"{url}: its contents are not those that were written (sha256)"


def label_numbers(
    split: str,
    named: Sequence[str],
    present: Sequence[int],
    classes: Sequence[str] | None,
    allow_missing: bool,
) -> dict[int, int]:
    """Label of each class number in a split's files: the index of its name in `classes`.

    Args:
        split: name of the split in errors.
        named: names of the numbers.
        present: numbers that occur.
        classes: the class list to follow; `named` when not given.
        allow_missing: accept a split that lacks some of `classes`.

    Raises:
        DataError: a number without a name, a class that is not listed, or one without images.
    """
    if unnamed := [number for number in present if not 0 <= number < len(named)]:
        raise DataError(f"{split}: label {unnamed[0]} has no name; there are {len(named)} classes, from 0")
    wanted = named if classes is None else classes
    if twice := [name for name, count in Counter(wanted).items() if count > 1]:
        raise DataError(f"{split}: the class list names {twice[0]!r} more than once")
    label = {name: index for index, name in enumerate(wanted)}
    found = {named[number] for number in present}
    if unknown := sorted(found - set(label)):
        raise DataError(f"{split}: {unknown[0]!r} not among the {len(label)} known classes")
    missing = [name for name in wanted if name not in found]
    if classes is not None and missing and not allow_missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{split}: no images of {missing[0]!r}{more}; every class of the class list needs some"
        )
    return {number: label[named[number]] for number in present}


def fingerprints(shards: Shards) -> list[str]:
    """A string for each file that changes with its contents; sizes are compared with the index.

    Local files are checked even where the index has their hash; in object storage each request takes time.

    Raises:
        DataError: a file is missing, or has another size than the index says.
    """
    result = []
    for number, (url, file) in enumerate(zip(shards.urls, shards.files, strict=True)):
        entry = shards.index[number] if shards.index is not None else None
        if entry is not None and is_remote(url):
            result.append(entry.sha256)
            continue
        size, version = size_and_version(url)
        if entry is not None and size != entry.bytes:
            raise DataError(f"{url}: {size} bytes, {INDEX} says {entry.bytes}: copy {file} again")
        result.append(f"{size} {version}" if entry is None else entry.sha256)
    return result


def class_number(value: object, where: str) -> int:
    """A class number in a file.

    Raises:
        DataError: it is none, or there cannot be so many classes.
    """
    try:
        number = int(value)  # type: ignore[call-overload]
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{where} is missing or holds no number ({shown(value)})") from None
    if not 0 <= number < MAX_CLASSES:
        raise DataError(f"{where}: class number {shown(number)} must lie between 0 and {MAX_CLASSES - 1:,}")
    return number


def _read_classes(root: str) -> tuple[str, ...] | None:
    file = f"{root}/{CLASSES}"
    try:
        text = read_bytes(file, missing=b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start:,})") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return check_class_names(names, file) if names else None
