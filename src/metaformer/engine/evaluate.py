"""Evaluate: how well a trained network does on a data set."""

from collections.abc import Sequence
from pathlib import Path

from metaformer.data.split import Split, open_split
from metaformer.engine.bundle import Bundle, open_bundle
from metaformer.engine.distributed import join
from metaformer.engine.setup import read_names
from metaformer.errors import ConfigError
from metaformer.tasks.evaluation import Evaluation
from metaformer.tasks.results import EvalReport


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
    raw: bool = False,
    batch_size: int = 128,
    workers: int = 4,
    device: str = "auto",
    amp: str = "none",
) -> EvalReport:
    """Measure a run, a checkpoint or a published model on an image folder; under torchrun, together.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        data: folder that holds the data set; the run's own when not given.
        checkpoint: weights for a model name; its published ones when not given.
        split: sub-folder; the run's own, or `val`.
        classes: the model's class names, or a file of them, where neither run nor folders tell.
        image_size: pixels of the network's input; as the source says when not given. So for:
        crop: share of the resized picture that the centre crop keeps.
        interpolation: bicubic or bilinear.
        flip: average with the mirrored picture.
        crops: 1, or 5 for centre and corners, averaged.
        real_labels: ReaL labels, a JSON list with the accepted classes of each picture, in file order.
        class_subset: text file of the class names that alone count.
        raw: measure the raw weights of a checkpoint that also holds their average.
        batch_size: pictures at once, per device.
        workers: processes that read, per device.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: `none`, `bf16` or `fp16`.

    Raises:
        ConfigError: a value that cannot be, or classes that do not match.
        DataError: the data set is not laid out as it should be, or a picture cannot be read.
        WeightsError: the weights cannot be read or do not fit.
    """
    check_amp(amp)
    world = join(device)
    folders = None
    if checkpoint is not None and data is not None and not Path(source).is_dir():
        folders = len(open_split(data, split or "val").classes)
    bundle = open_bundle(source, checkpoint, classes=classes, num_classes=folders, raw=raw)
    bundle = bundle.looking(image_size, crop, interpolation).placed(world.device, amp)
    folder = _folder(bundle, data, split, class_subset is not None)
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


def _folder(bundle: Bundle, data: str | Path | None, split: str | None, subset: bool) -> Split:
    run = bundle.config
    root = data if data is not None else (run.data.root if run is not None else None)
    if root is None:
        raise ConfigError(f"data: give the folder to measure {bundle.name} on")
    split = split or (run.data.val if run is not None else "val")
    folder = open_split(root, split, bundle.classes, allow_missing=subset)
    outputs = bundle.model.num_classes
    if len(folder.classes) != outputs:
        raise ConfigError(
            f"{folder.folder}: {len(folder.classes)} classes, but {bundle.name} tells {outputs} classes apart"
        )
    return folder
