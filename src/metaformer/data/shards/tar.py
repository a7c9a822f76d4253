"""Tar shards as webdataset has them: KEY.jpg with the class number beside it in KEY.cls."""

import contextlib
import io
import json
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NamedTuple

from PIL import Image

from metaformer.color import Color
from metaformer.data.class_lists import MAX_CLASSES
from metaformer.data.folder import EXTENSIONS
from metaformer.data.image import decode_image
from metaformer.data.shards.index import INDEX, Shards, class_number, fingerprints, label_numbers
from metaformer.data.shards.remote import open_file, read_bytes, size_and_version
from metaformer.errors import ConfigError, DataError, MetaFormerError, MissingPackage
from metaformer.serialize import NATURAL, Range, decode, errors_at, is_text, parse_json, shown

CONTENTS: Final = ".contents.json"
"""Ending of the file beside a shard that lists its images with their byte offsets."""
_IMAGES: Final = tuple(sorted(EXTENSIONS))


class Member(NamedTuple):
    """One image of a tar file."""

    path: str
    """Path in the image folder that it came from, or in the tar file."""
    number: int
    """Class number."""
    offset: int
    """Position of its bytes in the tar file."""
    size: int


_Natural = Annotated[int, NATURAL]
_Class = Annotated[int, Range(0, MAX_CLASSES, below=True, integer=True)]
_Columns = tuple[list[str], list[_Class], list[_Natural], list[_Natural]]
"""Columns of `Member` in a list of contents."""


class EncodedImage(NamedTuple):
    """One image of a stream, not decoded yet."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    """Index in the source."""
    name: str
    """Name in errors."""
    label: int
    data: bytes


class TarImages:
    """Images of one split in tar files, numbered across the files in order.

    Training streams each file from its beginning, evaluation reads image by image. The headers of a file
    without a list of contents are scanned once.

    Args:
        shards: the files.
        classes: the class list of a checkpoint or of the training split; labels are indices into it.
        allow_missing: accept a split without images of some of `classes`.

    Raises:
        DataError: a damaged file, one without images and labels, or classes that do not match.
    """

    def __init__(
        self, shards: Shards, classes: Sequence[str] | None = None, *, allow_missing: bool = False
    ) -> None:
        self.shards = shards
        self.folder = shards.name
        self._members: dict[int, list[Member]] = {}
        self._labels: array[int] | None = None
        if shards.index is None:
            self._counts = [len(self._contents(file)) for file in range(len(shards.files))]
        else:
            fingerprints(shards)  # raises where a file is missing or cut off
            self._counts = [shard.images for shard in shards.index]
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
        """Name of an image: its tar file, and its path there."""
        file = bisect_right(self._ends, index)
        try:
            return f"{self.shards.urls[file]}: {self._member(index).path}"
        except DataError:  # a damaged file must not hide the error that this name is for
            return f"{self.shards.urls[file]}: image {index - self.first(file)}"

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        member = self._member(index)
        url = self.shards.urls[bisect_right(self._ends, index)]
        data = read_bytes(url, member.offset, member.offset + member.size)
        return decode_image(data, f"{url}: {member.path}", background=background)

    def first(self, file: int) -> int:
        """Index of a file's first image."""
        return self._ends[file] - self._counts[file]

    def stream(self, file: int) -> Iterator[EncodedImage]:
        """Read a file from beginning to end.

        Raises:
            DataError: it is damaged, or holds other images than its index or list of contents says.
        """
        url, first = self.shards.urls[file], self.first(file)
        count = 0
        with open_file(url) as opened:
            for sample in _samples(opened, url):
                if count < self._counts[file]:
                    label = self._label_of(_number(sample, url), url)
                    kind = _image(sample, url)
                    name = _path(sample, f"{sample['__key__']}.{kind}")
                    yield EncodedImage(first + count, f"{url}: {name}", label, sample[kind])
                count += 1
        if count != self._counts[file]:
            raise DataError(f"{url}: holds {count} images, not {self._counts[file]}: copy it again")

    def _member(self, index: int) -> Member:
        file = bisect_right(self._ends, index)
        return self._contents(file)[index - self.first(file)]

    def _numbers(self) -> Iterator[int]:
        for file in range(len(self.shards.files)):
            yield from (member.number for member in self._contents(file))

    def _label_of(self, number: int, name: str) -> int:
        if number not in self._label:
            raise DataError(f"{name}: class {number} has no name; there are {len(self._label)}, from 0")
        return self._label[number]

    def _contents(self, file: int) -> list[Member]:
        if file not in self._members:
            url, index = self.shards.urls[file], self.shards.index
            text = read_bytes(contents_name(url), missing=b"") if index else b""
            found = _parse(text, url) if text else scan_tar(url)
            if index and len(found) != index[file].images:
                count = index[file].images
                raise DataError(f"{url}: holds {len(found)} images, {INDEX} says {count}: copy it again")
            most = index[file].bytes if index else 0
            if index and (beyond := [row for row in found if row.offset + row.size > most]):
                raise DataError(f"{url}: damaged: {shown(beyond[0].path)} lies beyond its {most:,} bytes")
            self._members[file] = found
        return self._members[file]


class TarShard:
    """Writer of a tar shard: each image is its bytes, its class number, and its path as JSON.

    Args:
        file: the file to write.
        classes: class names; labels are indices into it.
        first: key of its first image; keys are numbered across all files of a split.
    """

    def __init__(self, file: Path, classes: Sequence[str], first: int) -> None:
        self.file, self.classes, self.first = file, classes, first
        self.members: list[Member] = []
        self.tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, path: str, label: int, data: bytes) -> None:
        """Append an image."""
        key = f"{self.first + len(self.members):09d}"
        metadata = json.dumps({"path": path, "class": self.classes[label]})
        self._put(f"{key}{Path(path).suffix.lower()}", data)
        self.members.append(Member(path, label, self.tar.offset - _padded(len(data)), len(data)))
        self._put(f"{key}.cls", str(label).encode())
        self._put(f"{key}.json", metadata.encode())

    def close(self) -> None:
        """Finish the file."""
        self.tar.close()

    def contents(self) -> str:
        """List of contents, as JSON: columns of `Member`."""
        return json.dumps([list(column) for column in zip(*self.members, strict=True)], ensure_ascii=False)

    def _put(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        self.tar.addfile(entry, io.BytesIO(data))


def contents_name(url: str) -> str:
    """Path or URL of a shard's list of contents."""
    return url.removesuffix(".tar") + CONTENTS


def read_tar(file: Path) -> Iterator[tuple[int, bytes]]:
    """Label and bytes of each image that `TarShard` wrote."""
    with open_file(str(file)) as opened:
        for sample in _samples(opened, str(file)):
            yield _number(sample, str(file)), sample[_image(sample, str(file))]


def scan_tar(url: str) -> list[Member]:
    """Find the images of a tar file by its headers, without reading the images.

    Raises:
        DataError: it is damaged, compressed, or not a tar file.
    """
    found: list[Member] = []
    sample: dict[str, Any] = {}
    with open_file(url) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for entry in _entries(tar, url):
                    if not (split := _split(entry.name)):
                        continue
                    if sample and split[0] != sample["__key__"]:
                        found.append(_to_member(sample, url))
                        sample = {}
                    sample["__key__"] = split[0]
                    sample[split[1]] = entry
                    if split[1] in ("cls", "json"):
                        content = tar.extractfile(entry)
                        sample[split[1]] = content.read() if content else b""
        except MetaFormerError:
            raise
        except Exception as error:  # tarfile raises nearly every class there is on damaged headers
            raise DataError(f"{url}: damaged, or no uncompressed tar file ({_reason(error)})") from error
    if sample:
        found.append(_to_member(sample, url))
    # A file that was cut within its last image has headers that are whole.
    if found and found[-1].offset + found[-1].size > size_and_version(url)[0]:
        raise DataError(f"{url}: damaged: it ends within {found[-1].path}")
    return found


def _entries(tar: tarfile.TarFile, url: str) -> Iterator[tarfile.TarInfo]:
    """Ordinary files of a tar file; headers that no shard needs, and those that lie, are refused."""
    end = 0
    for entry in tar:
        # in a stream tarfile would step over the content block by block, however long it is said to be
        unknown = not entry.isreg() and tar.offset > entry.offset_data
        if entry.issparse() or unknown or entry.size < 0 or tar.offset <= end:
            kind = f"has a size of {shown(entry.size)} bytes"
            if entry.issparse() or unknown:
                kind = "is sparse" if entry.issparse() else "is of an unknown type"
            raise DataError(f"{url}: {shown(entry.name)} {kind}: write the shard again")
        end = tar.offset
        if entry.isreg():
            yield entry
    if isinstance(tar.fileobj, io.BufferedReader):  # after a damaged header tarfile stops without a word
        tar.fileobj.seek(end)
        if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
            raise DataError(f"{url}: damaged: no header at byte {end:,}")


def _reason(error: Exception) -> str:
    return shown(str(error.args[0]) if error.args else type(error).__name__, quote=False)


def _members(stream: BinaryIO, url: str) -> Iterator[dict[str, Any]]:
    """Names and contents of the files of a stream, as webdataset has them."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for entry in _entries(tar, url):
            content = tar.extractfile(entry)
            yield {"fname": entry.name, "data": content.read() if content else b"", "__url__": url}


def _to_member(sample: dict[str, Any], url: str) -> Member:
    entry = sample[_image(sample, url)]
    return Member(_path(sample, entry.name), _number(sample, url), entry.offset_data, entry.size)


def _path(sample: dict[str, Any], default: str) -> str:
    with contextlib.suppress(DataError, AttributeError):  # other writers put other things there
        path = parse_json(sample.get("json", b"{}"), "").get("path", default)
        return path if isinstance(path, str) and is_text(path) else default
    return default


def _samples(stream: BinaryIO, url: str) -> Iterator[dict[str, Any]]:
    try:
        from webdataset.tariterators import group_by_keys
    except ImportError as error:
        raise MissingPackage("webdataset", "shards", "a stream of tar files") from error

    try:
        yield from group_by_keys(_members(stream, url), keys=lambda name: _split(name) or (None, None))
    except MetaFormerError:
        raise
    except Exception as error:  # tarfile raises nearly every class there is on damaged headers
        raise DataError(f"{url}: damaged, or no uncompressed tar file ({_reason(error)})") from error


def _split(name: str) -> tuple[str, str] | None:
    """Key and kind of a member: its name is split at the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    key, dot, kind = file.partition(".")
    return (f"{folder}{slash}{key}", kind.lower()) if key and dot else None


def _image(sample: dict[str, Any], url: str) -> str:
    """The kind under which a sample has its image, such as `jpg`."""
    for kind in sample:
        if not kind.startswith("__") and f".{kind}".endswith(_IMAGES):
            return kind
    kinds = ", ".join(kind for kind in sample if not kind.startswith("__"))
    raise DataError(f"{url}: {sample['__key__']} holds no image that can be read, only {kinds}")


def _number(sample: dict[str, Any], url: str) -> int:
    where = f"{url}: {sample['__key__']}.cls"
    if "cls" not in sample:
        raise DataError(f"{where} is missing or holds no number")
    return class_number(sample["cls"], where)


def _parse(text: bytes, url: str) -> list[Member]:
    where = f"{contents_name(url)}: damaged, delete it or copy it again"
    with errors_at(where, DataError):
        columns = decode(_Columns, parse_json(text, where), "columns")
        if len({len(column) for column in columns}) > 1:
            raise ConfigError("columns: are not of the same length")
    return [Member(*row) for row in zip(*columns, strict=True)]


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
