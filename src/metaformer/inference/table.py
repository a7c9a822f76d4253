"""Batches of a table, columns by name, as programs hand them over that work on many machines."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from metaformer.color import Color
from metaformer.data.image import decode_image, image_in_memory, read_image
from metaformer.errors import BadImage, DataError
from metaformer.tasks.outputs import Result

PIXELS: Final = ("image", "bytes", "content")
"""Columns of images, of encoded ones too: they are not handed on."""
PATH: Final = "path"
"""Column of files, where there are no pixels."""
Columns = dict[str, Any]


def predict_columns(
    columns: Mapping[str, Any],
    predict: Callable[[list[Image.Image]], Sequence[Result]],
    background: Color | None,
    on_bad: Callable[[BadImage], None],
) -> Columns:
    """Results of a batch, beside its own columns.

    Args:
        columns: lists or arrays of one length.
        predict: gives the result of each of some images.
        background: color that transparent pixels are blended on.
        on_bad: called with the error of each image that cannot be read, whose row is then left out.

    Raises:
        DataError: no column of images, or one of the results' names.
    """
    source = next((name for name in (*PIXELS, PATH) if name in columns), None)
    if source is None:
        raise DataError(
            f"columns are {', '.join(map(str, columns)) or 'none'}: images are looked for in "
            f"{', '.join(PIXELS)} and {PATH}"
        )
    rows, images = [], []
    for row, value in enumerate(columns[source]):
        try:
            images.append(_read(value, f"row {row}", background))
            rows.append(row)
        except BadImage as error:
            on_bad(error)
    everything = len(rows) == len(columns[source])
    found: Columns = {
        name: values if everything else [values[row] for row in rows]
        for name, values in ((name, columns[name]) for name in columns if name not in PIXELS)
    }
    for result in predict(images) if images else ():
        for name, value in result.to_dict().items():
            if name in columns and name != PATH:
                raise DataError(
                    f"column {name} is there already: rename it, so that results can have the name"
                )
            if name != PATH:
                found.setdefault(name, []).append(_plain(value))
    return found


def _read(value: Any, name: str, background: Color | None) -> Image.Image:
    if isinstance(value, Mapping):  # as data sets of Hugging Face keep images that are not decoded
        value = value.get("bytes") or value.get("path")
    match value:
        case bytes() | bytearray():
            return decode_image(bytes(value), name, background=background)
        case str() | Path():
            return read_image(value, background=background)
        case Image.Image() | np.ndarray():
            return image_in_memory(value, name, background)
    raise DataError(f"{name}: {type(value).__name__} is no image, array, path or encoded image")


def _plain(value: Any) -> Any:
    """A value whose type is the same in all rows: names are no fields, since not every row has them all."""
    if isinstance(value, Mapping):
        return [{"name": name, "value": one} for name, one in value.items()]
    return list(value) if isinstance(value, tuple) else value
