"""Parquet shards as Hugging Face's data sets have them, with random access."""

import os
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from PIL import Image

from metaformer.color import Color
from metaformer.data.class_lists import MAX_CLASSES
from metaformer.data.image import decode_image
from metaformer.data.shards.index import Shards, class_number, damaged_shards, fingerprints, label_numbers
from metaformer.data.shards.remote import is_remote
from metaformer.errors import BadImage, DataError, MetaFormerError, MissingPackage
from metaformer.serialize import shown

ROW_GROUP: Final = 32 << 20
"""Bytes of images in a row group, the unit of writing and reading."""
_LABELS: Final = ("label", "labels", "fine_label", "class", "cls", "target")


class ParquetImages:
    """Images of one split in parquet files, numbered across the files in order.

    Files are read through Hugging Face's `datasets`, which copies their rows once to its cache
    (HF_DATASETS_CACHE; as much disk as the files take, for all processes of a machine) and memory-maps it:
    any image costs one read. The bytes are decoded here, as those of files are.

    Args:
        shards: the files.
        classes: the class list of a checkpoint or of the training split; labels are indices into it.
        allow_missing: accept a split without images of some of `classes`.

    Raises:
        DataError: a damaged file, one without images and labels, or classes that do not match.
        MissingPackage: `datasets` is not installed.
    """

    def __init__(
        self, shards: Shards, classes: Sequence[str] | None = None, *, allow_missing: bool = False
    ) -> None:
        self.shards = shards
        self.folder = shards.name
        rows = _open(shards)
        with _errors_of(self.folder):
            self._column, label = _columns(rows.features, self.folder)
            self._rows = rows.with_format("arrow")
            numbers, named = _numbers(self.folder, rows, label, shards.classes or classes)
        self._ends = list(accumulate(shard.images for shard in shards.index or ()))
        if self._ends and self._ends[-1] != len(numbers):
            raise DataError(f"{self.folder}: {len(numbers)} images, the index says {self._ends[-1]}")
        label_of = label_numbers(self.folder, named, sorted(set(numbers)), classes, allow_missing)
        self.classes = tuple(named if classes is None else classes)
        self.labels = array("q", (label_of[number] for number in numbers))

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Name of an image: its file, or its split where there is no index, and its path or row there."""
        name = self._field(index, "path") or f"row {index}"
        if not self._ends:
            return f"{self.folder}: {name}"
        return f"{self.shards.urls[bisect_right(self._ends, index)]}: {name}"

    @property
    def paths(self) -> list[Path]:
        """Names of all images, in order."""
        return [Path(self.path(index)) for index in range(len(self))]

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        data = self._field(index, "bytes")
        if not isinstance(data, bytes):  # a path alone could name any file of this machine
            raise BadImage(self.path(index), "the row holds no bytes of an image")
        return decode_image(data, self.path(index), background=background)

    def _field(self, index: int, name: str) -> Any:
        with _errors_of(self.folder):
            cells = self._rows[index].column(self._column).chunk(0)
            if cells.type.num_fields:
                known = {cells.type.field(i).name for i in range(cells.type.num_fields)}
                return cells.field(name)[0].as_py() if name in known and cells[0].is_valid else None
            return cells[0].as_py() if name == "bytes" else None


class ParquetShard:
    """Writer of a parquet shard, with the columns that `datasets` reads as images and classes.

    Args:
        file: the file to write.
        classes: class names; labels are indices into it.
    """

    def __init__(self, file: Path, classes: Sequence[str]) -> None:
        datasets, parquet = _packages()
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
        self.schema = datasets.Features(features).arrow_schema
        self.file = file
        # Images are compressed already, and statistics of their bytes are useless.
        self.writer = parquet.ParquetWriter(
            file, self.schema, compression="none", use_dictionary=False, write_statistics=False
        )
        self.rows: list[tuple[dict[str, Any], int]] = []
        self.pending = 0

    def add(self, path: str, label: int, data: bytes) -> None:
        """Append an image."""
        self.rows.append(({"bytes": data, "path": path}, label))
        self.pending += len(data)
        if self.pending >= ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        """Write the last row group and finish the file."""
        try:
            if self.rows:
                self._write_group()
        finally:
            self.writer.close()

    def _write_group(self) -> None:
        import pyarrow

        images, labels = zip(*self.rows, strict=True)
        self.writer.write_table(pyarrow.table([list(images), list(labels)], schema=self.schema))
        self.rows, self.pending = [], 0


def read_parquet(file: Path) -> Iterator[tuple[int, bytes]]:
    """Label and bytes of each image that `ParquetShard` wrote."""
    _, parquet = _packages()
    with parquet.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group)
            for row in zip(table.column("label").to_pylist(), table.column("image").to_pylist(), strict=True):
                yield row[0], row[1]["bytes"]


def _packages() -> tuple[Any, Any]:
    try:
        import datasets
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage("datasets", "shards", "parquet") from error
    return datasets, pyarrow.parquet


def _open(shards: Shards) -> Any:
    """Rows from the cache of `datasets`, which is filled first where it lacks these contents."""
    datasets, _ = _packages()
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.io.parquet import ParquetDatasetReader

    files = DataFilesDict(
        rows=DataFilesList(
            [url if is_remote(url) else os.path.abspath(url) for url in shards.urls],
            [(fingerprint,) for fingerprint in fingerprints(shards)],  # part of the cache's key
        )
    )
    quiet = not sys.stderr.isatty() and not datasets.utils.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        with _errors_of(shards.name):
            reader = ParquetDatasetReader(
                files, split=datasets.NamedSplit("rows"), cache_dir=os.environ.get("HF_DATASETS_CACHE")
            )
            if not is_remote(shards.root) and not os.path.isdir(reader.builder.cache_dir):
                for damage in damaged_shards(shards):  # once: cached files are not hashed again
                    raise DataError(f"{damage}: copy it again, or shard the data again")
            return reader.read()
    finally:
        if quiet:
            datasets.enable_progress_bars()


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Turn errors of `datasets` and pyarrow, which are of nearly every class there is, into ours."""
    try:
        yield
    except MetaFormerError:
        raise
    except Exception as error:  # `datasets` wraps errors of pyarrow and file systems
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = shown(str(cause), quote=False) or type(cause).__name__
        raise DataError(f"{name}: cannot read the parquet files ({reason})") from error


def _columns(features: Any, split: str) -> tuple[str, str]:
    """Names of the columns of images and of labels."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images += [name for name, kind in features.items() if _holds_bytes(kind)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels += [name for name in _LABELS if name in features]
    if not images or not labels:
        what = "images" if not images else "labels"
        raise DataError(f"{split}: no column of {what} among {', '.join(features)}")
    return images[0], labels[0]


def _holds_bytes(kind: Any) -> bool:
    inner = kind.get("bytes") if isinstance(kind, dict) else kind
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def _numbers(
    split: str, rows: Any, label: str, classes: Sequence[str] | None
) -> tuple[list[int], Sequence[str]]:
    """Class number of each row, and the names of the numbers."""
    values = rows.data.column(label).to_pylist()
    if not values:
        raise DataError(f"{split}: no images")
    strange = [row for row, value in enumerate(values) if type(value) is not type(values[0])]
    if strange or not isinstance(values[0], int | str):
        row = strange[0] if strange else 0
        raise DataError(
            f"{split}: row {row} has {label} {values[row]!r}: give each a number, or each a class name"
        )
    if isinstance(values[0], str):
        names = sorted(set(values))
        number = {name: i for i, name in enumerate(names)}
        return [number[value] for value in values], names
    if max(values) >= MAX_CLASSES:
        row = values.index(max(values))
        class_number(values[row], f"{split}: row {row}: {label}")
    named = getattr(rows.features[label], "names", None) or classes
    return values, named or [str(number) for number in range(max(values) + 1)]
