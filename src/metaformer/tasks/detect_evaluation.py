"""Measuring a detector: every picture once, in its own pixels, by however many processes."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metaformer.data.dataset import AugmentedScenes
from metaformer.data.detection import DetectionFolder
from metaformer.data.detection_preprocess import DetectionPreprocess
from metaformer.data.loader import DATA_TIMEOUT, Loader, Stop
from metaformer.data.sampler import EvalSampler
from metaformer.detection.results import Targets
from metaformer.metrics.average_precision import AveragePrecision, Kind
from metaformer.ops.ranks import in_step, rank, total, world_size
from metaformer.tasks.detect_examples import Examples
from metaformer.tasks.detect_inference import DetectForward, DetectInference
from metaformer.tasks.detect_report import DetectReport
from metaformer.tasks.detect_results import DetectedObjects


class DetectEvaluation:
    """A validation set and the way it is looked at; `run` measures one network.

    Args:
        source: pictures and their objects.
        preprocess: how pictures become input.
        inference: in one view or several; one when not given.
        masks: measure masks, too.
        workers: processes that read.
        pin_memory: keep batches in page-locked memory, for copies to CUDA.
        timeout: seconds to wait for a worker before giving up.
        stop: asked again and again; once it says so, the evaluation ends unfinished.

    Raises:
        MissingPackage: faster-coco-eval, which measures, is not installed.
    """

    def __init__(
        self,
        source: DetectionFolder,
        preprocess: DetectionPreprocess,
        *,
        inference: DetectInference | None = None,
        masks: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = DATA_TIMEOUT,
        stop: Stop | None = None,
    ) -> None:
        self.source, self.preprocess, self.masks = source, preprocess, masks
        self.inference = inference or DetectInference()
        self.document = source.document()
        AveragePrecision(self.document, self.kinds)  # what is wrong shows before anything is learned
        sampler = EvalSampler(len(source), batch_size=1, rank=rank(), world=world_size())
        self.most = sampler.most
        # Workers resize, where one size is all that the network wants.
        self.resized = self.inference.scales == (1.0,)
        self.loader = Loader(
            AugmentedScenes(source, _Picture(preprocess if self.resized else None), masks=False),
            sampler,
            workers=workers,
            pin_memory=pin_memory,
            timeout=timeout,
            stop=stop,
        )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What overlaps are measured of, in COCO's words."""
        return ("bbox", "segm") if self.masks else ("bbox",)

    def run(self, forward: DetectForward) -> DetectReport:
        """Measure; `forward` finds objects in images (B, 3, h, w).

        Raises:
            TrainingError: boxes or scores that are not finite; the message names the picture.
            Interrupted: `stop` said so, on whatever rank.
        """
        precision = AveragePrecision(self.document, self.kinds)
        examples = Examples()
        seen = 0
        for index, found in in_step(self._found(forward), self.most):
            precision.update(found.as_found(self.source.image_id(index)))
            examples.update(index, found, self.source.instances(index))
            seen += 1
        return DetectReport(
            images=int(total(torch.tensor(seen))),
            figures=precision.result(),
            palette=self.source.palette,
            examples=examples.chosen(),
        )

    def _found(self, forward: DetectForward) -> Iterator[tuple[int, DetectedObjects]]:
        """Look at picture after picture; what can go wrong does so in here, where all ranks hear of it."""
        for batch in self.loader:
            index, (height, width) = int(batch.indices[0]), batch.sizes[0]
            image = batch.images[0, :, :height, :width]
            picture = image if self.resized else Image.fromarray(image.permute(1, 2, 0).numpy())
            size, name = self.source.size(index), self.source.path(index)
            found = self.inference.detections(
                forward, picture, self.preprocess, (size[1], size[0]), name=name
            )
            yield (
                index,
                DetectedObjects.from_detections(
                    found, str(name), size, self.source.classes, self.source.palette
                ),
            )

    def close(self) -> None:
        """Stop the processes that read."""
        self.loader.close()


class _Picture:
    """A picture as input, or as it is, (3, h, w); its objects are those of the document."""

    def __init__(self, preprocess: DetectionPreprocess | None) -> None:
        self.transform = None if preprocess is None else preprocess.transform()

    def __call__(self, picture: Image.Image, targets: Targets) -> tuple[Tensor, Targets]:
        none = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        if self.transform is not None:
            return self.transform(picture), none
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), none
