"""Pictures and clips in, the classes of their pixels out."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from metaformer.data.dense_preprocess import DensePreprocess
from metaformer.engine.bundle import Bundle
from metaformer.engine.picture_stream import PictureStream
from metaformer.tasks.inference import Inference
from metaformer.tasks.segment_results import Segmentation


class PictureSegmenter(PictureStream):
    """A trained network that tells the classes of pixels.

    Args:
        bundle: the network.
        classes: its class names.
        inference: how pictures are looked at.
        workers: threads that read pictures ahead; 0 reads each when it is due.
    """

    def __init__(
        self, bundle: Bundle, classes: Sequence[str], inference: Inference, workers: int = 0
    ) -> None:
        super().__init__(workers)
        assert isinstance(bundle.preprocess, DensePreprocess)
        self.bundle, self.classes, self.inference = bundle, tuple(classes), inference
        self._preprocess = bundle.preprocess

    def see(self, picture: Image.Image, path: str, name: str) -> Segmentation:
        """Tell the class of each pixel."""
        found = self.inference.label_map(self.bundle.forward, picture, self._preprocess, name=name).numpy()
        kind = np.uint8 if len(self.classes) <= 256 else np.uint16
        return Segmentation(path, found.astype(kind, copy=False), self.classes, self.bundle.palette)
