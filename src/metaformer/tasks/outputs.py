"""Predictions, and the files that they are written to."""

import csv
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

from PIL import Image

from metaformer.color import Color
from metaformer.data.class_lists import Palette
from metaformer.data.image import read_image
from metaformer.errors import BadImage, ConfigError, DataError, MetaFormerError, OutputError, TrainingError
from metaformer.process import one_line
from metaformer.report.readable import Readable
from metaformer.storage import FileNames, atomic_bytes, atomic_text, check_writable
from metaformer.visualize import album
from metaformer.visualize.video import frames


class Result(Protocol):
    """A network's result for one image."""

    @property
    def path(self) -> str:
        """The image file; empty for an image in memory."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, a line of predictions.jsonl."""

    def to_response(self) -> dict[str, Any]:
        """Plain values with all that a viewer draws, as `metaformer serve` answers."""


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What viewers of a network's results need beside them; None where the task has no such thing."""

    colors: Palette | None = None
    """Color of each class."""
    thresholds: tuple[float, ...] | None = None
    """Score from which on each class is predicted."""
    draw_score: float | None = None
    """Score from which objects are drawn."""


class DrawnResult(Readable):
    """Result that can be drawn on its image."""

    path: str
    _image: ClassVar[Image.Image | None] = None
    _frame: ClassVar[int | None] = None
    _background: ClassVar[Color | None] = None

    @abstractmethod
    def _summary(self) -> str:
        """What is in the image, in a line."""

    def text(self) -> str:
        """The image's file, and what is in it."""
        return f"{self.path}: {self._summary()}" if self.path else self._summary()

    def _images(self) -> Iterable[Image.Image]:
        with suppress(MetaFormerError):  # the image is not known, or gone
            yield self.plot()

    @abstractmethod
    def _draw(self, image: Image.Image) -> Image.Image:
        """Draw the result on an RGB image."""

    def plot(self, image: Image.Image | None = None) -> Image.Image:
        """Draw the result as `predict --draw` does.

        Args:
            image: what is drawn on; by default the image that was predicted, read again where it is a file.

        Raises:
            BadImage: the file cannot be read.
            DataError: the image is not known.
        """
        if image is None:
            image = self._image
        if image is None and not self.path:
            raise DataError("the result of an image in memory does not know it: plot(image)")
        if image is None and self._frame is not None:
            image = next(islice(frames(self.path, self._background), self._frame, None)).image
        if image is None:
            return self._draw(read_image(self.path, background=self._background))
        return self._draw(image.convert("RGB"))

    def save(self, path: str | Path, image: Image.Image | None = None) -> Path:
        """Write what `plot` draws, in the format that the file's name ends in.

        Raises:
            ConfigError: a name with another ending.
            OutputError: the file cannot be written.
        """
        target = Path(path)
        if target.suffix.lower() not in IMAGE_FORMATS:
            raise ConfigError(f"{target}: an image's name ends in {', '.join(IMAGE_FORMATS)}")
        drawn = self.plot(image)
        with atomic_bytes(target) as stream:
            drawn.save(stream, IMAGE_FORMATS[target.suffix.lower()])
        return target

    def show(self, image: Image.Image | None = None) -> None:
        """Open what `plot` draws in the desktop's viewer."""
        self.plot(image).show()

    def drawn_on(
        self, image: Image.Image | None, frame: int | None = None, background: Color | None = None
    ) -> Self:
        """The same, which knows what it is drawn on.

        Args:
            image: an image in memory.
            frame: a frame of the video `path`.
            background: color that transparent pixels of the file `path` are blended on.
        """
        for name, value in (("_image", image), ("_frame", frame), ("_background", background)):
            object.__setattr__(self, name, value)  # results are frozen; this is no part of their value
        return self


LISTED = 5
"""Classes or objects in the line about a result."""


def named_shares(pairs: Iterable[tuple[str, float]]) -> str:
    """Names with percentages, the first few of them."""
    rows = list(pairs)
    text = ", ".join(f"{name} {share:.1%}" for name, share in rows[:LISTED])
    return text if len(rows) <= LISTED else f"{text} and {len(rows) - LISTED} more"


IMAGE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Formats of drawn results by the ending of the file's name."""
R = TypeVar("R", bound=Result)


class Prediction(NamedTuple, Generic[R]):
    """A result with its image."""

    result: R
    image: Image.Image | None = None
    """The image in RGB; None where it is read again from `path` when needed."""
    frame: int | None = None
    """Frame number in the video or animation that `path` names, from 0; None for a still image."""
    milliseconds: int = 0
    """Duration of the frame."""
    background: Color | None = None
    """Color that transparent pixels are blended on."""

    @property
    def path(self) -> str:
        """The file of the image or video."""
        return self.result.path

    def pixels(self) -> Image.Image:
        """The image in RGB, read from its file where it is not in memory.

        Raises:
            BadImage: the file cannot be read.
        """
        return read_image(self.path, background=self.background) if self.image is None else self.image


Writer = Callable[[str, Prediction[R]], None]
"""Writes one prediction; its first argument is the name of the prediction's files, without ending."""
LINES = "predictions.jsonl"
FILES = (".jsonl", ".csv")
"""Endings of single files that predictions of whole images may be written to."""


class Output(NamedTuple):
    """One file or folder of predictions."""

    writer: AbstractContextManager[Writer[Any]]
    label: str
    """What it holds, for the line that is printed."""
    file: Path
    folder: Path | None = None
    """Where it puts a file for each image."""


def write_outputs(
    predictions: Iterable[Prediction[Any]],
    out: str | Path | None,
    outputs: Callable[[Path], Sequence[Output]],
    *,
    needs_folder: Mapping[str, Any],
    suffixes: Collection[str] = (),
) -> Iterator[str]:
    """Write predictions one by one to all outputs; yields the lines to print.

    Args:
        predictions: what is written; a file for one image appears when that image is done.
        out: a folder, or a file that ends in one of `suffixes`; None yields JSON lines and writes nothing.
        outputs: the outputs in a folder or file.
        needs_folder: options that need `out`, with their values.
        suffixes: endings of files that may be written instead of a folder.

    Raises:
        ConfigError: an option without `out`, or a file where a folder is needed.
        DataError, TrainingError: of the predictions; those before it are written.
        OutputError: `out` cannot be written to, or is the folder of the images.
    """
    requested = [name for name, value in needs_folder.items() if value]
    if out is None:
        if requested:
            raise ConfigError(f"{', '.join(requested)}: say where to write with `out`")
        yield from (json.dumps(json_line(prediction), ensure_ascii=False) for prediction in predictions)
        return
    target = Path(out)
    is_file = target.suffix.lower() in suffixes
    if not is_file and target.suffix.lower() in (".json", ".jsonl", ".csv"):
        raise ConfigError(f"out is {target}: a folder is needed here; leave out {target.suffix}")
    chosen, names, count = outputs(target), _Names(), 0  # may refuse an option: before anything is written
    check_writable(target if is_file else target / LINES)
    folders = {output.folder.resolve() for output in chosen if output.folder is not None}
    with ExitStack() as stack:
        writers = [stack.enter_context(output.writer) for output in chosen]
        failure: DataError | TrainingError | None = None
        try:
            for prediction in predictions:
                if prediction.path and Path(prediction.path).resolve().parent in folders:
                    raise OutputError(
                        f"{prediction.path}: lies in the folder that results are written to; "
                        "choose another `out`"
                    )
                name = names.of(prediction)
                for write in writers:
                    write(name, prediction)
                count += 1
        except (DataError, TrainingError) as error:  # what was predicted before is kept
            failure = error
    if failure is not None:
        raise _after(failure, count, target)
    yield from (f"{count} {output.label}: {output.folder or output.file}" for output in chosen)


def _after(failure: DataError | TrainingError, count: int, target: Path) -> DataError | TrainingError:
    """The error that ended predictions, with what was written before it."""
    kept = f"the {count} predictions before it are in {target}"
    if isinstance(failure, BadImage):
        return BadImage(failure.path, f"{failure.reason}; {kept}; --on-bad-image skip leaves it out")
    return type(failure)(f"{failure}; {kept}") if type(failure) in (DataError, TrainingError) else failure


@contextmanager
def jsonl_writer(
    file: Path, line: Callable[[str, Prediction[R]], dict[str, Any]] | None = None
) -> Iterator[Writer[R]]:
    """JSON lines writer; the file appears when all predictions are written.

    Args:
        file: the file.
        line: JSON object of a prediction; by default its result's plain values.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_text(file) as stream:

        def write(name: str, prediction: Prediction[R]) -> None:
            values = json_line(prediction) if line is None else line(name, prediction)
            stream.write(json.dumps(values, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def csv_writer(file: Path) -> Iterator[Writer[Any]]:
    """CSV writer with a row per image, its result's `to_row()`; the file appears when all are written.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_text(file) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        has_header = False

        def write(name: str, prediction: Prediction[Any]) -> None:
            nonlocal has_header
            cells = prediction.result.to_row()
            if not has_header:
                rows.writerow(map(csv_cell, cells))
            has_header = True
            rows.writerow(map(csv_cell, cells.values()))

        yield write


def csv_cell(value: object) -> object:
    """A cell of a table that spreadsheets open: no control characters, and no formula."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def drawn_output(
    root: Path, draw: Callable[[Prediction[Any], bool], Image.Image], fps: float | None = None
) -> Output:
    """The output of drawn images; those of videos are also joined.

    Args:
        root: folder in which a folder of them is created.
        draw: draws a prediction on its image; its second argument says that it is a frame of many.
        fps: frames a second: all images are also joined to one animation.

    Raises:
        ConfigError: `fps` out of range.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise ConfigError(f"fps is {fps:g}: it must be above 0, and at most 1000")
    folder = root / album.FOLDER
    return Output(album.album_writer(root, draw, fps), "drawn images", folder, folder)


def json_line(prediction: Prediction[Any]) -> dict[str, Any]:
    """A prediction's plain values, with the frame number in its video."""
    line = prediction.result.to_dict()
    return line if prediction.frame is None else {**line, "frame": prediction.frame}


class _Names:
    """File names of predictions: an image's own, a frame's video's with its number."""

    def __init__(self) -> None:
        self._names, self._videos = FileNames(), dict[str, str]()

    def of(self, prediction: Prediction[Any]) -> str:
        path = prediction.path
        if prediction.frame is None:
            return self._names.of(path)
        if path not in self._videos:
            self._videos[path] = self._names.of(path)
        return self._names.unique(f"{self._videos[path]}_{prediction.frame:06d}")


def read_image_ids(file: str | Path) -> dict[str, int]:
    """Ids of images by file name from a COCO file, such as that of a test split without annotations.

    Raises:
        DataError: it cannot be read, lists no images, or lists a file name twice.
    """
    try:
        images = json.loads(Path(file).read_text(encoding="utf-8-sig"))["images"]
        rows = [(str(row["file_name"]).replace("\\", "/"), row["id"]) for row in images]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{file}: no COCO file with images, each with id and file_name ({reason})") from error
    ids = dict(rows)
    if not rows or len(ids) != len(rows) or not all(type(number) is int for number in ids.values()):
        raise DataError(f"{file}: it must list images, each file_name once, with whole numbers as id")
    return ids


class ImageNumbers:
    """COCO image ids: those of a file, or the number that a file name is, else the next free one.

    Args:
        ids: ids by file name, perhaps with folders before it; None where there is no such file.
    """

    def __init__(self, ids: Mapping[str, int] | None = None) -> None:
        self._taken: set[int] = set()
        self._ids: dict[str, list[tuple[str, int]]] | None = None
        if ids is not None:
            self._ids = {}
            for file, number in ids.items():
                self._ids.setdefault(file.rpartition("/")[2], []).append((file, number))

    def of(self, name: str, path: str = "") -> int:
        """The id of one more image: its name without extension, and its path.

        Raises:
            DataError: ids come from a file, which does not name this image, or several of its name.
        """
        if self._ids is not None:
            place = Path(path).as_posix()
            known = self._ids.get(Path(path).name, [])
            found = [number for file, number in known if f"/{place}".endswith(f"/{file}")]
            found = found or [number for _, number in known]
            if len(found) != 1:
                raise DataError(f"{path or name}: the file of image ids has {len(found) or 'no'} such image")
            return found[0]
        number = int(name) if name.isdecimal() else 0
        if number < 1 or number in self._taken:
            number = len(self._taken) + 1
            while number in self._taken:
                number += 1
        self._taken.add(number)
        return number
