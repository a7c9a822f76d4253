"""Predict: pictures in, classes out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from metaformer.data.dataset import Augmented, Source
from metaformer.data.loader import Batch, Loader, Stop
from metaformer.data.sampler import EvalSampler
from metaformer.engine.bundle import open_bundle
from metaformer.engine.distributed import find_device
from metaformer.engine.evaluate import check_amp
from metaformer.engine.pictures import Picture, Pictures
from metaformer.errors import ConfigError
from metaformer.tasks.results import Classification
from metaformer.tasks.views import average_views

IMAGENET_CLASSES = 1000


class Predictor:
    """A trained network as a function of pictures.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        checkpoint: weights for a model name; its published ones when not given.
        classes: class names, or a file with one in each line, where the source does not know them; a
            network of 1000 classes is taken to tell ImageNet's.
        image_size: pixels of the network's input; as the source says when not given.
        top_k: classes in each result.
        flip: average with the mirrored picture.
        crops: 1, or 5 for centre and corners, averaged.
        batch_size: pictures at once.
        workers: processes that read; 0 reads in this one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: `none`, `bf16` or `fp16`.

    Raises:
        ConfigError: a value that cannot be, or no such source.
        WeightsError: the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        classes: str | Path | Sequence[str] | None = None,
        image_size: int | None = None,
        top_k: int = 5,
        flip: bool = False,
        crops: int = 1,
        batch_size: int = 32,
        workers: int = 0,
        device: str = "auto",
        amp: str = "none",
    ) -> None:
        check_amp(amp)
        if top_k < 1 or batch_size < 1:
            raise ConfigError(f"top_k is {top_k}, batch_size {batch_size}: both must be at least 1")
        place = find_device(device)
        bundle = open_bundle(source, checkpoint, classes=classes).looking(image_size)
        self.bundle = bundle.placed(place, amp)
        self.classes = bundle.classes or _numbered(int(bundle.model.num_classes))  # type: ignore[arg-type]
        self.top_k, self.flip, self.crops = min(top_k, len(self.classes)), flip, crops
        self.batch_size, self.workers = batch_size, workers
        self._transform = bundle.preprocess.transform(crops)

    def __call__(self, pictures: Picture | Iterable[Picture]) -> list[Classification]:
        """Classify a file, a folder, a glob, an image, or a list of these; in order, files sorted.

        Raises:
            DataError: nothing found, or a picture that cannot be read.
        """
        return list(self.stream(pictures))

    def stream(self, pictures: Picture | Iterable[Picture]) -> Iterator[Classification]:
        """Do the same one result after another, for more pictures than memory holds results of."""
        source = Pictures(pictures)
        sampler = EvalSampler(len(source), batch_size=self.batch_size)
        for _, results in self.batches(source, sampler):
            yield from results

    def batches(
        self, source: Source, sampler: EvalSampler, *, stop: Stop | None = None, skip_bad: bool = False
    ) -> Iterator[tuple[Batch, list[Classification]]]:
        """Classify those pictures of a source that a sampler names, batch by batch.

        Args:
            source: the pictures.
            sampler: which of them, in which order.
            stop: asked again and again; once it says so, waiting for data ends.
            skip_bad: leave out pictures that cannot be read, and say so in the batch.

        Raises:
            BadImage: a picture cannot be read.
            Interrupted: `stop` said so.
        """
        loader = Loader(
            Augmented(source, self._transform),
            sampler,
            workers=min(self.workers, len(source)),
            pin_memory=self.bundle.device.type == "cuda",
            stop=stop,
            skip_bad=skip_bad,
        )
        try:
            for batch in loader:
                yield batch, self._results(source, batch)
        finally:
            loader.close()

    @torch.inference_mode()
    def _results(self, source: Source, batch: Batch) -> list[Classification]:
        logits = average_views(self.bundle.forward, batch.images, self.flip)
        best = logits.float().softmax(dim=1).topk(self.top_k, dim=1)
        rows = zip(batch.indices.tolist(), best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            Classification(str(source.path(i)), tuple(self.classes[k] for k in ks), tuple(scores), tuple(ks))
            for i, scores, ks in rows
        ]


def _numbered(count: int) -> tuple[str, ...]:
    """Names where none were written down: ImageNet's words for its 1000 classes, else numbers."""
    if count != IMAGENET_CLASSES:
        return tuple(str(i) for i in range(count))
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(count))
