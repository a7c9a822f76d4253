"""Images in tar files, as webdataset holds them: KEY.jpg with KEY.cls beside it, the class's number."""

import contextlib
import io
import json
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from PIL import Image

from metaformer.data.folder import EXTENSIONS
from metaformer.data.image import decode_image
from metaformer.data.shards.index import INDEX, Shards, label_numbers, tags
from metaformer.data.shards.remote import open_address, read_bytes, size_and_tag
from metaformer.errors import DataError, MissingPackage

CONTENTS: Final = ".contents.json"
"""Ending of the file beside a shard that says where in it each image lies."""
_IMAGES: Final = tuple(sorted(EXTENSIONS))


class Member(NamedTuple):
    """One image of a tar file."""

    path: str
    """Its name in the folder that it came from, or in the tar file."""
    number: int
    """Its class's."""
    offset: int
    """Where its bytes begin."""
    size: int


class Read(NamedTuple):
    """One image as it comes out of a stream."""

    place: int
    """Its index in the source."""
    name: str
    """What errors call it."""
    label: int
    data: bytes


class TarImages:
    """The images of one split; sample i is the i-th of its files, taken one after the other.

    A file can be read from its beginning, which is how training does it, or image by image, which is
    how evaluation does. Where nothing tells what a file holds it is looked through once.

    Args:
        shards: where the files lie.
        classes: the class list of a checkpoint or of the training split; labels are positions in it.
        allow_missing: take a split without images of some of `classes`.

    Raises:
        DataError: a file is damaged or holds something else, or the classes do not match.
    """

    def __init__(
        self, shards: Shards, classes: Sequence[str] | None = None, *, allow_missing: bool = False
    ) -> None:
        self.shards = shards
        self.folder = shards.place
        self._members: dict[int, list[Member]] = {}
        self._labels: array[int] | None = None
        if shards.known is None:
            self._counts = [len(self._contents(file)) for file in range(len(shards.files))]
        else:
            tags(shards)  # all are there, whole
            self._counts = [shard.images for shard in shards.known]
        self._ends = list(accumulate(self._counts))
        if not self._ends[-1]:
            raise DataError(f"{self.folder}: no images")
        named = shards.classes or classes
        if named is None:
            named = [str(number) for number in range(max(self._numbers()) + 1)]
        self._label = {number: number for number in range(len(named))}
        if classes is not None:
            present = sorted(set(self._numbers()))
            self._label = label_numbers(self.folder, named, present, classes, allow_missing)
        self.classes = tuple(named if classes is None else classes)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def labels(self) -> Sequence[int]:
        """Labels of all images."""
        if self._labels is None:
            self._labels = array("q", (self._label_of(number, self.folder) for number in self._numbers()))
        return self._labels

    @property
    def paths(self) -> list[Path]:
        """Names of all images, in order."""
        return [Path(self.path(index)) for index in range(len(self))]

    def path(self, index: int) -> str:
        """Tell what an image is called: its file, and its name there."""
        file = bisect_right(self._ends, index)
        try:
            return f"{self.shards.addresses[file]}: {self._find(index).path}"
        except DataError:  # what is wrong with the file must not hide the error that this name is for
            return f"{self.shards.addresses[file]}: image {index - self.first(file)}"

    def image(self, index: int) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        member = self._find(index)
        address = self.shards.addresses[bisect_right(self._ends, index)]
        data = read_bytes(address, member.offset, member.offset + member.size)
        return decode_image(data, f"{address}: {member.path}")

    def first(self, file: int) -> int:
        """Give the index of a file's first image."""
        return self._ends[file] - self._counts[file]

    def stream(self, file: int) -> Iterator[Read]:
        """Read a file from its beginning to its end.

        Raises:
            DataError: it is damaged, or not what the index or the first look at it says.
        """
        address, first = self.shards.addresses[file], self.first(file)
        place = 0
        with open_address(address) as opened:
            for sample in _samples(opened, address):
                if place < self._counts[file]:
                    label = self._label_of(_number(sample, address), address)
                    kind = _image(sample, address)
                    name = _path(sample, f"{sample['__key__']}.{kind}")
                    yield Read(first + place, f"{address}: {name}", label, sample[kind])
                place += 1
        if place != self._counts[file]:
            raise DataError(f"{address}: holds {place} images, not {self._counts[file]}: copy it again")

    def _find(self, index: int) -> Member:
        file = bisect_right(self._ends, index)
        return self._contents(file)[index - self.first(file)]

    def _numbers(self) -> Iterator[int]:
        for file in range(len(self.shards.files)):
            yield from (member.number for member in self._contents(file))

    def _label_of(self, number: int, place: str) -> int:
        if number not in self._label:
            raise DataError(f"{place}: class {number} has no name; there are {len(self._label)}, from 0")
        return self._label[number]

    def _contents(self, file: int) -> list[Member]:
        if file not in self._members:
            address, known = self.shards.addresses[file], self.shards.known
            text = read_bytes(contents_name(address), missing=b"") if known else b""
            found = _parse(text, address) if text else look_through(address)
            if known and len(found) != known[file].images:
                count = known[file].images
                raise DataError(f"{address}: holds {len(found)} images, {INDEX} says {count}: copy it again")
            self._members[file] = found
        return self._members[file]


class TarShard:
    """A tar file in the making: per image its bytes, its class's number, and a name in JSON.

    Args:
        file: where it is written.
        classes: class names; labels are positions in it.
        first: number of its first image; keys are numbers, over all files of a split.
    """

    def __init__(self, file: Path, classes: Sequence[str], first: int) -> None:
        self.file, self.classes, self.first = file, classes, first
        self.members: list[Member] = []
        self.tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, path: str, label: int, data: bytes) -> None:
        """Append an image."""
        key = f"{self.first + len(self.members):09d}"
        about = json.dumps({"path": path, "class": self.classes[label]})
        self._put(f"{key}{Path(path).suffix.lower()}", data)
        self.members.append(Member(path, label, self.tar.offset - _padded(len(data)), len(data)))
        self._put(f"{key}.cls", str(label).encode())
        self._put(f"{key}.json", about.encode())

    def close(self) -> None:
        """Write the file's end."""
        self.tar.close()

    def contents(self) -> str:
        """Make the text that says where in it each image lies."""
        return json.dumps([list(column) for column in zip(*self.members, strict=True)], ensure_ascii=False)

    def _put(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        self.tar.addfile(entry, io.BytesIO(data))


def contents_name(address: str) -> str:
    """Tell where the contents of a shard are written down."""
    return address.removesuffix(".tar") + CONTENTS


def read_tar(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield label and bytes of each image that `TarShard` has written."""
    with open_address(str(file)) as opened:
        for sample in _samples(opened, str(file)):
            yield _number(sample, str(file)), sample[_image(sample, str(file))]


def look_through(address: str) -> list[Member]:
    """Find the images of a tar file by its headers; of their bytes nothing is read.

    Raises:
        DataError: it is damaged, compressed, or no tar file.
    """
    found: list[Member] = []
    sample: dict[str, Any] = {}
    with open_address(address) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for entry in tar:
                    if not entry.isreg() or not (split := _split(entry.name)):
                        continue
                    if sample and split[0] != sample["__key__"]:
                        found.append(_member(sample, address))
                        sample = {}
                    sample["__key__"] = split[0]
                    sample[split[1]] = entry
                    if split[1] in ("cls", "json"):
                        content = tar.extractfile(entry)
                        sample[split[1]] = content.read() if content else b""
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{address}: damaged, or no uncompressed tar file ({error})") from error
    _check_end(found, sample, address)
    return [*found, _member(sample, address)] if sample else found


def _check_end(found: list[Member], sample: dict[str, Any], address: str) -> None:
    """Refuse a file that ends within its last image, which headers alone do not tell."""
    last = found[-1:] + ([_member(sample, address)] if sample else [])
    if last and last[-1].offset + last[-1].size > size_and_tag(address)[0]:
        raise DataError(f"{address}: damaged: it ends within {last[-1].path}")


def _member(sample: dict[str, Any], address: str) -> Member:
    entry = sample[_image(sample, address)]
    return Member(_path(sample, entry.name), _number(sample, address), entry.offset_data, entry.size)


def _path(sample: dict[str, Any], default: str) -> str:
    with contextlib.suppress(ValueError, AttributeError):  # others write other things there
        return str(json.loads(sample.get("json", b"{}")).get("path", default))
    return default


def _samples(stream: BinaryIO, address: str) -> Iterator[dict[str, Any]]:
    try:
        from webdataset.tariterators import group_by_keys, tar_file_iterator
    except ImportError as error:
        raise MissingPackage("webdataset", "shards", "a stream of tar files") from error

    members = ({**member, "__url__": address} for member in tar_file_iterator(stream, skip_meta=None))
    try:
        yield from group_by_keys(members, keys=_split_or_none)
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise DataError(f"{address}: damaged, or no uncompressed tar file ({reason})") from error


def _split(name: str) -> tuple[str, str] | None:
    """Split a name at the first dot of its last part: the key, and the kind in lower case."""
    folder, slash, file = name.rpartition("/")
    key, dot, kind = file.partition(".")
    return (f"{folder}{slash}{key}", kind.lower()) if key and dot else None


def _split_or_none(name: str) -> tuple[str | None, str | None]:
    return _split(name) or (None, None)


def _image(sample: dict[str, Any], address: str) -> str:
    """Find the kind under which a sample has its image."""
    for kind in sample:
        if not kind.startswith("__") and f".{kind}".endswith(_IMAGES):
            return kind
    kinds = ", ".join(kind for kind in sample if not kind.startswith("__"))
    raise DataError(f"{address}: {sample['__key__']} holds no image that can be read, only {kinds}")


def _number(sample: dict[str, Any], address: str) -> int:
    try:
        return int(sample["cls"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{address}: {sample['__key__']}.cls is missing or holds no number") from error


def _parse(text: bytes, address: str) -> list[Member]:
    try:
        rows = [Member(*row) for row in zip(*json.loads(text), strict=True)]
        if not all(isinstance(row.offset, int) and isinstance(row.number, int) for row in rows):
            raise ValueError("not numbers")
        return rows
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{contents_name(address)}: damaged ({error}): delete it, or copy it again"
        ) from error


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
