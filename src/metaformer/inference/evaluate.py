"""Evaluate: how well a trained network does on a data set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metaformer.data.preprocess import Preprocess
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.data.split import Split, open_split
from metaformer.distributed import World, join
from metaformer.errors import ConfigError
from metaformer.factory import is_detector, is_segmenter
from metaformer.inference.model import DOES, LoadedModel, load_model
from metaformer.tasks.classification.evaluate import Evaluation
from metaformer.tasks.classification.results import EvalReport
from metaformer.tasks.classification.task import read_names
from metaformer.tasks.detection.dataset import DetectionFolder, open_detection
from metaformer.tasks.detection.evaluate import DetectEvaluation
from metaformer.tasks.detection.predict import DetectInference
from metaformer.tasks.detection.preprocess import DetectionPreprocess
from metaformer.tasks.detection.results import DetectReport
from metaformer.tasks.detection.task import detect_inference
from metaformer.tasks.segmentation.dataset import SegmentationFolder, open_segmentation
from metaformer.tasks.segmentation.evaluate import SegmentEvaluation
from metaformer.tasks.segmentation.predict import Inference
from metaformer.tasks.segmentation.results import SegmentReport
from metaformer.tasks.segmentation.task import inference


def evaluate(
    source: str | Path,
    data: str | Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    split: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    image_size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    flip: bool = False,
    crops: int = 1,
    real_labels: str | Path | None = None,
    class_subset: str | Path | None = None,
    scales: Sequence[float] | None = None,
    slide: int | None = None,
    layout: str | None = None,
    raw: bool = False,
    batch_size: int = 128,
    workers: int = 4,
    device: str = "auto",
    amp: str = "none",
) -> EvalReport | SegmentReport | DetectReport:
    """Measure a run, a checkpoint or a published model on a data set; under torchrun, together.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        data: folder that holds the data set; the run's own when not given.
        checkpoint: weights for a model name; its published ones when not given.
        split: sub-folder; the run's own, or `val`.
        classes: the model's class names, or a file of them, where neither run nor folders tell.
        image_size: pixels of the network's input; as the source says when not given. So for:
        crop: share of the resized image that the center crop keeps.
        interpolation: bicubic or bilinear.
        flip: average with the mirrored image.
        crops: 1, or 5 for center and corners, averaged.
        real_labels: ReaL labels, a JSON list with the accepted classes of each image, in file order.
        class_subset: text file of the class names that alone count.
        scales: of pixels and objects, sizes to look at, as factors; the run's own when not given.
        slide: of pixels, side of overlapping windows to look through, in pixels; 0 for whole images.
        layout: how the data set lies, a choice of `segment.layout` or `detect.layout`.
        raw: measure the raw weights of a checkpoint that also holds their average.
        batch_size: images at once, per device; one where pixels or objects are looked for.
        workers: processes that read, per device.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: `none`, `bf16` or `fp16`.

    Raises:
        ConfigError: a value that cannot be, that is for another task, or classes that do not match.
        DataError: the data set is not laid out as it should be, or an image cannot be read.
        WeightsError: the weights cannot be read or do not fit.
    """
    check_amp(amp)
    world = join(device)
    folders = None  # as many classes as the data has, for a model name with a file of weights
    named = not (Path(source).is_dir() or is_segmenter(str(source)) or is_detector(str(source)))
    if data is not None and checkpoint is not None and classes is None and named:
        folders = len(open_split(data, split or "val").classes)
    bundle = load_model(source, checkpoint, classes=classes, num_classes=folders, raw=raw)
    bundle = bundle.looking(image_size, crop, interpolation).placed(world.device, amp)
    only_for(
        bundle,
        ("classify",),
        {"crops": crops != 1, "real_labels": bool(real_labels), "class_subset": bool(class_subset)},
    )
    only_for(bundle, ("segment", "detect"), {"scales": bool(scales), "layout": bool(layout)})
    only_for(bundle, ("segment",), {"slide": slide is not None})
    evaluation: Evaluation | SegmentEvaluation | DetectEvaluation
    if bundle.task == "segment":
        evaluation = _segment(bundle, world, data, split, layout, looks(bundle, scales, slide, flip), workers)
    elif bundle.task == "detect":
        evaluation = _detect(bundle, world, data, split, layout, detect_looks(bundle, scales, flip), workers)
    else:
        folder = open_images(bundle, data, split, class_subset is not None)
        assert isinstance(bundle.preprocess, Preprocess)
        evaluation = Evaluation(
            folder,
            bundle.preprocess,
            batch_size=batch_size,
            workers=workers,
            flip=flip,
            crops=crops,
            real_labels=real_labels,
            class_subset=read_names(str(class_subset) if class_subset else None, folder.classes),
            pin_memory=world.device.type == "cuda",
        )
    try:
        return evaluation.run(bundle.forward)
    finally:
        evaluation.close()


def check_amp(amp: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        ConfigError: it is none of none, bf16, fp16.
    """
    if amp not in ("none", "bf16", "fp16"):
        raise ConfigError(f"amp: {amp!r} is none of none, bf16, fp16")


def only_for(bundle: LoadedModel, tasks: Sequence[str], given: dict[str, bool]) -> None:
    """Refuse options that were given though this bundle's task has no use for them.

    Raises:
        ConfigError: they are for other tasks.
    """
    named = [name for name, there in given.items() if there]
    if named and bundle.task not in tasks:
        raise ConfigError(f"{', '.join(named)}: {bundle.name} {DOES[bundle.task]} and cannot use it")


def looks(bundle: LoadedModel, scales: Sequence[float] | None, slide: int | None, flip: bool) -> Inference:
    """How to look at images: as the run did, but for what is asked."""
    own = inference(bundle.config) if bundle.config is not None else Inference()
    own = replace(own, flip=own.flip or flip, scales=tuple(scales) if scales else own.scales)
    if slide is None:
        return own
    side = (slide, slide)
    return (
        replace(own, mode="slide", window=side, stride=(-(-slide * 2 // 3),) * 2)
        if slide
        else replace(own, mode="whole")
    )


def detect_looks(bundle: LoadedModel, scales: Sequence[float] | None, flip: bool) -> DetectInference:
    """How to look at images for objects: as the run did, but for what is asked."""
    own = detect_inference(bundle.config) if bundle.config is not None else DetectInference()
    return replace(own, flip=own.flip or flip, scales=tuple(scales) if scales else own.scales)


def open_images(bundle: LoadedModel, data: str | Path | None, split: str | None, subset: bool) -> Split:
    """A classifier's images: a split of `data`, each by default the run's own; `subset` lets classes lack.

    Raises:
        ConfigError: no data, or another number of classes than the network tells apart.
        DataError: the data set is not laid out as it should be.
    """
    split = split or (bundle.config.data.val if bundle.config is not None else "val")
    folder = open_split(_root(bundle, data), split, bundle.classes, allow_missing=subset)
    _check_outputs(bundle, folder)
    return folder


def _segment(
    bundle: LoadedModel,
    world: World,
    data: str | Path | None,
    split: str | None,
    layout: str | None,
    inference: Inference,
    workers: int,
) -> SegmentEvaluation:
    run = bundle.config
    plan = run.segment if run is not None else None
    split = split or (run.data.val if run is not None else "val")
    folder = open_segmentation(
        _root(bundle, data),
        split,
        layout or (plan.layout if plan is not None else "auto"),
        classes=list(bundle.classes) if bundle.classes else None,
        reduce_zero_label=plan.reduce_zero_label if plan is not None else None,
    )
    _check_outputs(bundle, folder)
    assert isinstance(bundle.preprocess, DensePreprocess)
    return SegmentEvaluation(
        folder,
        bundle.preprocess,
        inference=inference,
        workers=workers,
        pin_memory=world.device.type == "cuda",
    )


def _detect(
    bundle: LoadedModel,
    world: World,
    data: str | Path | None,
    split: str | None,
    layout: str | None,
    inference: DetectInference,
    workers: int,
) -> DetectEvaluation:
    run = bundle.config
    masks = bool(getattr(bundle.model, "has_masks", False))
    folder = open_detection(
        _root(bundle, data),
        split or (run.data.val if run is not None else "val"),
        layout or (run.detect.layout if run is not None else "auto"),
        classes=list(bundle.classes) if bundle.classes else None,
        masks=None if masks else False,  # boxes alone can be measured of both
    )
    _check_outputs(bundle, folder)
    folder.check_any()
    assert isinstance(bundle.preprocess, DetectionPreprocess)
    return DetectEvaluation(
        folder,
        bundle.preprocess,
        inference=inference,
        masks=masks and folder.has_masks,
        workers=workers,
        pin_memory=world.device.type == "cuda",
    )


def _root(bundle: LoadedModel, data: str | Path | None) -> str | Path:
    root = data if data is not None else (bundle.config.data.root if bundle.config is not None else None)
    if root is None:
        raise ConfigError(f"data: give the folder to measure {bundle.name} on")
    return root


def _check_outputs(bundle: LoadedModel, folder: Split | SegmentationFolder | DetectionFolder) -> None:
    outputs = bundle.model.num_classes
    if len(folder.classes) != outputs:
        raise ConfigError(
            f"{folder.folder}: {len(folder.classes)} classes, but {bundle.name} tells {outputs} classes apart"
        )
