"""Conversion of an image folder to shards."""

import hashlib
import logging
import math
import os
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from tqdm import tqdm

from metaformer.data.dataset import BAD_SHARE
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import permutation
from metaformer.data.scan import scan
from metaformer.data.shards.index import FORMATS, INDEX, Shard, index_text
from metaformer.data.shards.parquet import ParquetShard, read_parquet
from metaformer.data.shards.remote import is_remote
from metaformer.data.shards.tar import TarShard, contents_name, read_tar
from metaformer.errors import BadImage, ConfigError, DataError, OutputError
from metaformer.report.readable import Readable
from metaformer.storage import as_path, atomic_path

T = TypeVar("T")
_log = logging.getLogger(__name__)
_READERS: Final[dict[str, Callable[[Path], Iterator[tuple[int, bytes]]]]] = {
    "parquet": read_parquet,
    "tar": read_tar,
}


@dataclass(frozen=True, repr=False)
class ShardReport(Readable):
    """The shards that were written."""

    root: Path
    kind: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[Shard, ...]]
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Images that were left out, with the reasons."""

    def text(self) -> str:
        """Summary for people."""
        lines = []
        for split, shards in self.splits.items():
            size = sum(shard.bytes for shard in shards) / 1e6
            images = sum(shard.images for shard in shards)
            left_out = f", {len(self.dropped[split])} left out" if self.dropped[split] else ""
            lines.append(f"{split}: {images} images in {len(shards)} files, {size:.1f} MB{left_out}")
        return "\n".join([*lines, f"{self.root}: use it like an image folder (--data.root, --data)"])


def write_shards(
    source: str | Path,
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    kind: str = "parquet",
    *,
    shard_size: float = 256.0,
    on_bad_image: str = "error",
    workers: int | None = None,
    progress: bool = True,
) -> ShardReport:
    """Write the images of an image folder, their bytes unchanged, to shards.

    Every image is read first. Each shard is written to a temporary file, read back, compared and renamed; the
    index, which lists the shards with their hashes, comes last. The same folder gives the same bytes. Parquet
    has the images in the order of `ImageFolder`, tar has them shuffled.

    Args:
        source: the image folder.
        root: a new or empty folder.
        splits: which splits; the first gives the class list.
        kind: `parquet`, for random access, or `tar`, for streams.
        shard_size: megabytes of images after which a shard is full.
        on_bad_image: `error`, or `skip`: leave out what cannot be read, up to 0.1 % of a split.
        workers: processes that read; one per core when not given.
        progress: show bars on stderr.

    Raises:
        ConfigError: a value out of range.
        DataError: the folder has another layout, or an image cannot be read.
        MissingPackage: a package for this kind is not installed.
        OutputError: `root` holds something, or cannot be written to.
    """
    if kind not in FORMATS or on_bad_image not in ("error", "skip") or not splits:
        raise ConfigError(
            f"kind {kind!r}, on_bad_image {on_bad_image!r}, splits {list(splits)}: "
            "choose parquet or tar, error or skip, and at least one"
        )
    if not 0 < shard_size < math.inf:
        raise ConfigError(f"shard_size is {shard_size}: it must be above 0")
    if is_remote(root):
        raise ConfigError(
            f"{root}: shards are written to this machine; copy them with your storage's own tool"
        )
    target = as_path(root, "root", DataError, expand=True)
    if target.resolve().is_relative_to(Path(source).expanduser().resolve()):
        raise ConfigError(f"{target}: lies in the image folder itself: choose a folder beside it")
    _check_empty(target)
    folders: dict[str, ImageFolder] = {}
    for split in dict.fromkeys(splits):
        known = next(iter(folders.values())).classes if folders else None
        folders[split] = ImageFolder(source, split, known, allow_missing=True)
    bad = {
        split: _bad_images(folder, on_bad_image == "skip", split, workers, progress)
        for split, folder in folders.items()
    }
    classes = next(iter(folders.values())).classes
    writer = _Writer(target, kind, classes, shard_size * 1e6, progress)
    with writer.removed_on_failure():
        shards = {split: writer.write(split, folder, bad[split]) for split, folder in folders.items()}
        dropped = {split: list(reasons.values()) for split, reasons in bad.items()}
        with writer.atomic(INDEX) as draft:
            draft.write_text(index_text(kind, classes, shards, dropped), encoding="utf-8")
    return ShardReport(target, kind, classes, shards, dropped)


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file: choose another folder")
    if folder.is_dir() and (names := sorted(os.listdir(folder))):
        what = f"holds {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        raise OutputError(f"{folder}: {what}: choose a new or empty folder, or delete it")


def _bad_images(
    folder: ImageFolder, skip: bool, split: str, workers: int | None, progress: bool
) -> dict[int, str]:
    """Read every image; reasons why images cannot be read, by index."""
    images = scan(folder, workers=workers, label=f"reading {split}", progress=progress)
    reasons = {image.index: image.error for image in images if image.error}
    if not reasons:
        return {}
    first = BadImage(folder.path(next(iter(reasons))), next(iter(reasons.values())))
    if not skip:
        if len(reasons) == 1:
            raise first
        raise DataError(f"{first}; {len(reasons) - 1} more like it: `metaformer data check` lists them")
    if len(reasons) > BAD_SHARE * len(folder):
        raise DataError(
            f"{first}; {len(reasons)} of {len(folder)} images cannot be read, more than {BAD_SHARE:.1%}: "
            "`metaformer data check` lists them"
        )
    for index, reason in reasons.items():
        _log.warning("%s: left out: %s", folder.path(index), reason)
    return {index: f"{_relative(folder, index)}: {reason}" for index, reason in reasons.items()}


def _relative(folder: ImageFolder, index: int) -> str:
    """Path of an image below its split."""
    return folder.path(index).relative_to(folder.folder).as_posix()


class _Writer:
    """Writer of the files of one data set; each appears under its name only when it is complete."""

    def __init__(self, root: Path, kind: str, classes: Sequence[str], full: float, progress: bool) -> None:
        self.root, self.kind, self.classes, self.full, self.progress = root, kind, classes, full, progress
        self.written: list[Path] = []

    def write(self, split: str, folder: ImageFolder, bad: Container[int]) -> tuple[Shard, ...]:
        """Write the shards of a split."""
        # A stream is shuffled only within its buffer, so the shards must not be sorted by class.
        order = permutation(len(folder), 0, 0).tolist() if self.kind == "tar" else range(len(folder))
        good = [index for index in order if index not in bad]
        shards: list[Shard] = []
        with tqdm(
            total=len(good), desc=f"writing {split}", unit="image", file=sys.stderr, disable=not self.progress
        ) as bar:
            first = 0
            for part in _partition(folder, good, self.full):
                name = f"{split}/{len(shards):05d}.{self.kind}"
                shards.append(self._write_shard(name, folder, part, first, bar))
                first += len(part)
        return tuple(shards)

    def _write_shard(self, name: str, folder: ImageFolder, part: list[int], first: int, bar: Any) -> Shard:
        with self.atomic(name) as draft:
            shard = (
                ParquetShard(draft, self.classes)
                if self.kind == "parquet"
                else TarShard(draft, self.classes, first)
            )
            expected = hashlib.sha256()
            try:
                for index in part:
                    data = _access(folder.path(index), Path.read_bytes)
                    shard.add(_relative(folder, index), folder.labels[index], data)
                    _update(expected, folder.labels[index], data)
                    bar.update()
            finally:
                shard.close()
            found = hashlib.sha256()
            for label, data in _READERS[self.kind](draft):
                _update(found, label, data)
            if found.digest() != expected.digest():
                raise OutputError(
                    f"{self.root / name}: what was read back is not what was written: check the disk"
                )
            with draft.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = draft.stat().st_size
            if isinstance(shard, TarShard):
                with self.atomic(contents_name(name)) as contents:
                    contents.write_text(shard.contents(), encoding="utf-8")
        return Shard(name, len(part), size, digest)

    @contextmanager
    def atomic(self, name: str) -> Iterator[Path]:
        """Temporary path of a file; see `storage.atomic_path`."""
        self.written.append(self.root / name)
        with atomic_path(self.root / name) as draft:
            yield draft

    @contextmanager
    def removed_on_failure(self) -> Iterator[None]:
        """Remove what was written when the block fails, so that the same command can be run again."""
        existed = self.root.is_dir()
        try:
            yield
        except BaseException:
            for file in self.written:
                file.unlink(missing_ok=True)
            for folder in [*self.root.glob("*/"), *([] if existed else [self.root])]:
                with suppress(OSError):  # someone else put files there
                    folder.rmdir()
            raise


def _partition(folder: ImageFolder, indices: list[int], full: float) -> Iterator[list[int]]:
    """Cut images into shards; the image that fills a shard is its last."""
    part: list[int] = []
    size = 0
    for index in indices:
        part.append(index)
        size += _access(folder.path(index), Path.stat).st_size
        if size >= full:
            yield part
            part, size = [], 0
    if part:
        yield part


def _access(path: Path, operation: Callable[[Path], T]) -> T:
    """Result of an operation on a file of the folder, which may have been deleted since it was scanned."""
    try:
        return operation(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _update(digest: Any, label: int, data: bytes) -> None:
    digest.update(f"{label} {len(data)} ".encode())
    digest.update(data)
