"""What takes results one by one, as they are made, and writes them."""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from metaformer.tasks.detect_results import DetectedObjects
from metaformer.tasks.segment_results import Segmentation

Result = Segmentation | DetectedObjects


class Seen(NamedTuple):
    """A picture and what was found in it."""

    picture: Image.Image
    result: Result
    frame: int | None = None
    """Its place in the clip that `result.path` names, from 0; None for a picture of its own."""
    milliseconds: int = 0
    """How long a frame is shown."""

    @property
    def segmentation(self) -> Segmentation:
        """The result of a network that tells classes of pixels apart."""
        assert isinstance(self.result, Segmentation)
        return self.result

    @property
    def objects(self) -> DetectedObjects:
        """The result of a network that finds objects."""
        assert isinstance(self.result, DetectedObjects)
        return self.result


Sink = Callable[[str, Seen], None]
"""Is given each result, with the name that its files have."""
