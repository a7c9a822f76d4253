"""Pictures and clips in, the objects in them out."""

from collections.abc import Collection, Sequence

from PIL import Image

from metaformer.data.detection_preprocess import DetectionPreprocess
from metaformer.engine.bundle import Bundle
from metaformer.engine.picture_stream import PictureStream
from metaformer.errors import ConfigError, UnknownName
from metaformer.tasks.detect_inference import DetectInference
from metaformer.tasks.detect_results import DetectedObjects


class PictureDetector(PictureStream):
    """A trained network that finds objects.

    Args:
        bundle: the network.
        classes: its class names.
        inference: how pictures are looked at.
        score: objects with a lower score are left out.
        only: names of the classes that are told; all when not given.
        workers: threads that read pictures ahead; 0 reads each when it is due.

    Raises:
        ConfigError: a score outside 0 to 1.
        UnknownName: a class that the network does not know.
    """

    def __init__(
        self,
        bundle: Bundle,
        classes: Sequence[str],
        inference: DetectInference,
        *,
        score: float = 0.0,
        only: Collection[str] | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(workers)
        assert isinstance(bundle.preprocess, DetectionPreprocess)
        if not 0 <= score <= 1:
            raise ConfigError(f"score is {score}: it must lie between 0 and 1")
        for name in only or ():
            if name not in classes:
                raise UnknownName("class", name, classes)
        self.bundle, self.classes, self.inference = bundle, tuple(classes), inference
        self.score, self.only = score, None if only is None else tuple(only)
        self._preprocess = bundle.preprocess

    def see(self, picture: Image.Image, path: str, name: str) -> DetectedObjects:
        """Find the objects in a picture."""
        found = self.inference.detections(self.bundle.forward, picture, self._preprocess, name=name)
        objects = DetectedObjects.from_detections(
            found, path, picture.size, self.classes, self.bundle.palette
        )
        return objects.filtered(self.score, self.only)
