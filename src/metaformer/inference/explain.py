"""Explain: where in an image a network sees what it says."""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from metaformer.attribution.stages import stage_of, trunk_of
from metaformer.data.image import read_image
from metaformer.distributed import find_device
from metaformer.errors import BadImage, ConfigError, OutputError, UnknownName
from metaformer.inference.model import load_model
from metaformer.inference.sheet import caption, sheet_rows
from metaformer.report.blocks import Example, Examples, Section
from metaformer.report.page import render_gallery
from metaformer.report.readable import Readable
from metaformer.serialize import parse_json
from metaformer.storage import (
    FileNames,
    as_path,
    atomic_bytes,
    atomic_text,
    check_writable,
    read_text,
    write_text,
)
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.explain import heat_map
from metaformer.tasks.exported import ExportedNetwork
from metaformer.tasks.heat import Heat, Subject
from metaformer.tasks.stream import ImageInput, ImageList
from metaformer.visualize.canvas import Box
from metaformer.visualize.sheet import draw_sheet

_log = logging.getLogger(__name__)
LINES: Final = "explained.jsonl"
SHEETS: Final = "sheets"
"""Folder of the sheets."""
QUALITY: Final = 88
SHOWN: Final = 4
"""Sheets that notebooks show."""
EVERYTHING: Final = 10_000
"""More than any image has."""


class Explainer:
    """Heat maps of one network.

    Args:
        model: the network, not rewritten.

    Raises:
        ConfigError: an exported file, which has no gradients, or another form without stages.
    """

    def __init__(self, model: LoadedModel) -> None:
        refuse_exported(model)
        trunk_of(model.model)
        self.model = model.to(model.device, model.amp)

    def find(self, image: Image.Image, count: int = 3, box: Box | None = None) -> Sequence[Subject]:
        """What the network finds in an RGB image, or in a box of it, the surest first: `heat` explains it."""
        return self.model.spec.explain.find(self.model, image, count, box)

    def heat(self, image: Image.Image, index: int, box: Box | None = None, stage: int | None = -1) -> Heat:
        """Where an image speaks for a class: (H, W), float32, at the image's size, from 0 to 1.

        0 is where it does not, or where the network does not look: outside a classifier's crop. The map of an
        image of one color is 0.

        Args:
            image: an RGB image.
            index: the class, from 0.
            box: left, top, right and bottom in the image's pixels, for segmentation and detection.
            stage: whose features are weighed, from 0; −1 for the last, which knows most and sees coarsest;
                None for the last whose map is not 0, as for small objects of a detector.

        Raises:
            ConfigError: no such class or stage; a class, or in a box an object, that is not there.
            MissingPackage: captum is not there.
            TrainingError: values that are not finite.
        """
        return heat_map(self.model, image.convert("RGB"), index, box, stage)


def refuse_exported(model: LoadedModel) -> None:
    """Refuse a network without gradients.

    Raises:
        ConfigError: it is an exported file.
    """
    if isinstance(model.model, ExportedNetwork):
        raise ConfigError(
            f"{model.name}: an exported file has no gradients to explain by: give the run it was made of"
        )


@dataclass(frozen=True)
class Explanation:
    """One image, explained."""

    path: str
    """Its file; empty for an image in memory."""
    sheet: str
    """The sheet's file."""
    missing: tuple[str, ...]
    """What was asked for and the network does not find in it."""
    subjects: tuple[Subject, ...]
    """What the sheet shows the maps of."""
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Title and captions of each row of the sheet."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, a line of explained.jsonl."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Explanations(Readable):
    """What `explain` has written."""

    out: Path
    images: tuple[Explanation, ...]
    skipped: tuple[BadImage, ...] = ()
    """Errors of images that were left out."""

    @property
    def page(self) -> Path:
        """The page that shows all sheets."""
        return self.out / "index.html"

    def text(self) -> str:
        """What was written, and where."""
        lines = [f"{len(self.images)} sheets: {self.out / SHEETS}", f"lines: {self.out / LINES}"]
        return "\n".join([*lines, f"page: {self.page}"])

    def _images(self) -> Iterable[Image.Image]:
        for one in self.images[:SHOWN]:
            with suppress(BadImage):  # gone since
                yield read_image(one.sheet)


def explain(
    source: str | Path,
    images: ImageInput | Sequence[ImageInput],
    out: str | Path,
    checkpoint: str | Path | None = None,
    *,
    class_names: str | Path | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    box: Sequence[float] | None = None,
    count: int = 3,
    stage: int | None = None,
    device: str = "auto",
    ema: bool = False,
    raw: bool = False,
    on_bad_image: Literal["error", "skip"] = "error",
) -> Explanations:
    """Write for each image a sheet of maps, a line of JSON with what is on it, and a page of all sheets.

    What was asked for and is not in an image is logged, and the others are shown. An earlier call's sheets in
    the same folder are replaced.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        images: a file, a folder, a glob, an image, or a list of these.
        out: folder of what is written.
        checkpoint: weights for a model name, in any published format (default: its published ones).
        class_names: class names, or a file with one a line, where nothing else gives them.
        classes: names of the classes to explain, such as cat,dog (default: what the network finds).
        box: left, top, right and bottom in pixels, for segmentation and detection: explain what is there.
        count: how many classes or objects of each image are explained, at most.
        stage: number of the stage whose features explain them, from 0 (default: the last whose map is not 0).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.
        on_bad_image: stop at an image that cannot be read, or leave it out and log it.

    Raises:
        ConfigError: an exported file, a value out of range, or no such class or stage.
        DataError: nothing found, or an image that cannot be read.
        OutputError: the folder cannot be written to.
        MissingPackage: captum is not there.
    """
    place = find_device(device)
    loaded = load_model(source, checkpoint, class_names=class_names, ema=ema, raw=raw)
    explainer = Explainer(loaded.to(place, "none"))
    request = _request(explainer, classes, box, count, stage)
    target, listed = as_path(out, "out", OutputError), ImageList(images)
    check_writable(target / LINES)
    former = _sheets(target)
    done: list[Explanation] = []
    skipped: list[BadImage] = []
    names = FileNames()
    with atomic_text(target / LINES) as lines:
        for index in tqdm(range(len(listed)), "explain", unit="image", leave=False, disable=None):
            path = listed.path(index)
            try:
                image = listed.image(index, loaded.preprocess.background)
            except BadImage as error:
                if on_bad_image != "skip":
                    raise
                _log.warning("left out: %s", error)
                skipped.append(error)
                continue
            done.append(_explain(explainer, request, image, path, target / SHEETS / f"{names.of(path)}.jpg"))
            lines.write(json.dumps(done[-1].to_dict(), ensure_ascii=False) + "\n")
    result = Explanations(target, tuple(done), tuple(skipped))
    write_text(result.page, _page(explainer.model, result))
    for sheet in former - _sheets(target):
        sheet.unlink(missing_ok=True)
    return result


def _sheets(out: Path) -> set[Path]:
    """The sheets that a folder's lines name.

    Raises:
        OutputError: the lines are not those of `explain`.
    """
    file = out / LINES
    lines = read_text(file, OutputError).splitlines() if file.exists() else ()
    rows = [parse_json(line, file, OutputError) for line in lines]
    if not all(isinstance(row, dict) and isinstance(row.get("sheet"), str) for row in rows):
        raise OutputError(f"{file}: is not of metaformer explain: choose another folder")
    return {out / SHEETS / Path(row["sheet"]).name for row in rows}


@dataclass(frozen=True)
class _Request:
    """What of each image is explained."""

    indices: tuple[int, ...] | None
    """Classes; None for what the network finds."""
    box: Box | None
    count: int
    stage: int | None

    def subjects(self, explainer: Explainer, image: Image.Image) -> tuple[list[Subject], list[str]]:
        """What of this image is explained, and what was asked for and the network does not find."""
        if self.indices is None:
            subjects = list(explainer.find(image, self.count, self.box))
            return subjects, [] if subjects or self.box is None else ["anything in the box"]
        found: dict[int, Subject] = {}
        for subject in explainer.find(image, EVERYTHING, self.box):
            found.setdefault(subject.index, subject)
        names = explainer.model.class_names
        return (
            [found[index] for index in self.indices if index in found],
            [f"class {names[index]!r}" for index in self.indices if index not in found],
        )


def _request(
    explainer: Explainer,
    classes: Sequence[str] | None,
    box: Sequence[float] | None,
    count: int,
    stage: int | None,
) -> _Request:
    """The arguments of `explain`, checked."""
    names = explainer.model.class_names
    for name in classes or ():
        if name not in names:
            raise UnknownName("class", name, names)
    if count < 1:
        raise ConfigError(f"count is {count}: it must be at least 1")
    if box is not None and not (
        len(box) == 4 and all(map(isfinite, box)) and box[0] < box[2] and box[1] < box[3]
    ):
        raise ConfigError(f"box is {list(box)}: give left, top, right and bottom in pixels")
    if stage is not None:
        stage_of(explainer.model.model, stage)
    corners = None if box is None else (box[0], box[1], box[2], box[3])
    indices = None if classes is None else tuple(names.index(name) for name in classes)
    return _Request(indices, corners, count, stage)


def _explain(
    explainer: Explainer, request: _Request, image: Image.Image, path: str, sheet: Path
) -> Explanation:
    """Write the sheet of an image."""
    try:
        subjects, missing = request.subjects(explainer, image)
        rows = sheet_rows(explainer.model, image, subjects, request.stage)
    except ConfigError as error:
        raise ConfigError(f"{path or 'the image'}: {error}") from error
    if missing:
        _log.warning("%s: the network does not find %s", path or "the image", ", ".join(missing))
    with atomic_bytes(sheet) as stream:
        draw_sheet(rows).save(stream, "JPEG", quality=QUALITY)
    captions = tuple((row.title, tuple(tile.caption for tile in row.tiles)) for row in rows)
    return Explanation(path, str(sheet), tuple(missing), tuple(subjects), captions)


def _page(model: LoadedModel, result: Explanations) -> str:
    """The page of all sheets."""
    examples = [
        Example(
            {"sheet": quote(f"{SHEETS}/{Path(one.sheet).name}")},
            value=", ".join(map(caption, one.subjects)) or "nothing found",
            text=f"not found: {', '.join(one.missing)}" if one.missing else "",
            note=one.path,
        )
        for one in result.images
    ]
    notes = "Grad-CAM: each channel of a stage's features weighs as much as its mean gradient of the score."
    return render_gallery(
        "Explained",
        f"{model.name}, {model.spec.title}: {len(examples)} images",
        [Section("What the network looks at", [Examples("", examples, large=True)], note=notes)],
        f"metaformer {metadata.version('metaformer')}",
    )
