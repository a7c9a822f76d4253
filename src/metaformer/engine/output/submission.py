"""What the ADE20K benchmark's server takes: a zip of PNGs, class numbers from 1, named as the pictures."""

import io
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from metaformer.engine.output.sink import Seen, Sink
from metaformer.engine.whole_file import whole_bytes
from metaformer.errors import ConfigError
from metaformer.tasks.segment_results import Segmentation

CLASSES = 150
"""Classes that the benchmark tells apart."""
FILE = "submission_ade20k.zip"
_log = logging.getLogger(__name__)


@contextmanager
def ade20k_sink(place: Path) -> Iterator[Sink]:
    """Write PLACE/submission_ade20k.zip when all results are in.

    Raises:
        ConfigError: more classes than the server knows, or two pictures of one name, by which it goes.
        OutputError: it cannot be written.
    """
    with whole_bytes(place / FILE) as stream, zipfile.ZipFile(stream, "w") as archive:
        taken: set[str] = set()

        def add(name: str, seen: Seen) -> None:
            own = f"{Path(seen.result.path).stem}.png"
            if not seen.result.path or seen.frame is not None:
                raise ConfigError("submission: of picture files only, since the server goes by their names")
            if not taken and len(seen.segmentation.classes) != CLASSES:
                known = len(seen.segmentation.classes)
                _log.warning("submission: the server knows ADE20K's %d classes, not %d", CLASSES, known)
            if own in taken:
                raise ConfigError(f"submission: two pictures are called {own}, and the server goes by names")
            taken.add(own)
            entry = zipfile.ZipInfo(own)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, _png(submission_image(seen.segmentation)))

        yield add


def submission_image(result: Segmentation) -> Image.Image:
    """Class numbers from 1, as grey values, at the picture's size.

    Raises:
        ConfigError: more classes than the server knows.
    """
    if len(result.classes) > CLASSES:
        raise ConfigError(
            f"submission: ADE20K has {CLASSES} classes, but this network tells {len(result.classes)} apart"
        )
    return Image.fromarray((result.label_map + 1).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
