"""What takes segmentations one by one, as they are made, and writes them."""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from metaformer.tasks.segment_results import Segmentation


class Seen(NamedTuple):
    """A picture and what was found in it."""

    picture: Image.Image
    result: Segmentation
    frame: int | None = None
    """Its place in the clip that `result.path` names, from 0; None for a picture of its own."""
    milliseconds: int = 0
    """How long a frame is shown."""


Sink = Callable[[str, Seen], None]
"""Is given each result, with the name that its files have."""
