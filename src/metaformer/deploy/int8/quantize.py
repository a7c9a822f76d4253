"""A trained classifier in int8, for CPUs, with a report of what that cost in accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.checkpoint.checkpoint import write_state
from metaformer.checkpoint.manifest import write_directory
from metaformer.data.preprocess import Preprocess
from metaformer.data.split import Split
from metaformer.deploy.int8.graph import Images, calibrate, float_products, load_nncf, make_graph
from metaformer.deploy.int8.report import QuantizeReport, Side, compare
from metaformer.errors import ConfigError, OutputError
from metaformer.inference.int8_model import NETWORK, Int8Network, load_openvino
from metaformer.inference.model import load_model
from metaformer.serialize import to_dict
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.classification.evaluate import ClassificationEvaluation, open_evaluation_split
from metaformer.tasks.classification.spec import SPEC as CLASSIFICATION

REPORT = "report.json"


CPU = torch.device("cpu")


def quantize(
    source: str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    image_size: int | None = None,
    images: int = 300,
    calibrate_on: str | None = None,
    split: str | None = None,
    max_drop: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
) -> QuantizeReport:
    """Quantize a classifier to int8 by NNCF, write it, and measure both networks on the validation split.

    The directory `out` holds OpenVINO's graph and weights, classes and preprocessing; nothing in it is code.
    `evaluate` and `predict` take it as they take a run.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        data: folder that holds the data set; None takes the run's own.
        out: directory to write; one that `quantize` wrote is replaced.
        checkpoint: weights for a model name; its published ones when not given.
        class_names: class names, or a file with one a line, where nothing else gives them.
        image_size: pixels of the network's input, which is then fixed; as the source says when not given.
        images: training images, spread evenly over the split, that tell the ranges of values.
        calibrate_on: split that they come from; the run's training split, or `train`.
        split: split to measure on; the run's own, or `val`.
        max_drop: largest loss of top-1 on these images, such as 0.01; products that hurt most go back to
            floating point until it is kept. A network that knows its training images by heart loses little
            on them: name a held-out split in `calibrate_on`. None quantizes all.
        batch_size: images at once in the measurement.
        workers: processes that read.

    Raises:
        ConfigError: a value that cannot be, or a source that is no classifier of floating-point weights.
        DataError: the data set is not laid out as it should be, or an image cannot be read.
        MissingPackage: OpenVINO or NNCF is not installed.
        OptimizeError: OpenVINO's form of the network does not compute the same.
        OutputError: `out` holds something else, or cannot be written.
        WeightsError: the weights cannot be read or do not fit.
    """
    if images < 2 or not (max_drop is None or 0 < max_drop < 1):
        raise ConfigError("quantize: images must be at least 2, max_drop between 0 and 1")
    target = Path(out)
    _check_free(target)
    load_nncf()  # it tells at once when it is missing
    model = load_model(source, checkpoint, class_names=class_names)
    if model.spec is not CLASSIFICATION:
        raise ConfigError(f"{source}: for {model.spec.title}; quantize takes {CLASSIFICATION.title}")
    model = model.with_preprocess(image_size=image_size).to(CPU, "none")
    if isinstance(model.model, Int8Network):
        raise ConfigError(f"{source}: is in int8 already; quantize what it was made of")
    run = model.config
    training = calibrate_on or (run.data.train if run else "train")
    known = open_evaluation_split(model, data, training, allow_missing=True)
    val = open_evaluation_split(model, data, split)
    calibration, labels = _read(model, known, images)
    graph = make_graph(model.model, torch.from_numpy(np.concatenate(calibration[:2])))
    small = calibrate(graph, calibration, labels, max_drop)
    evaluation = ClassificationEvaluation(val, _look(model), batch_size=batch_size, workers=workers)
    reports: list[QuantizeReport] = []

    def fill(directory: Path) -> None:
        _write(directory, model, small)
        network = Int8Network(directory / NETWORK)  # what was written is what is measured
        found = compare(evaluation, model.forward, network)
        products, left = float_products(small)
        report = QuantizeReport(
            name=model.name,
            directory=str(target),
            calibrated=len(calibration),
            images=found.original.images,
            float32=Side(found.original.top1, found.original.loss, _size(model)),
            int8=Side(found.copy.top1, found.copy.loss, _stored(directory)),
            agreement=found.agreement,
            mean_difference=found.mean_difference,
            largest_difference=found.largest_difference,
            largest_logit=found.largest_logit,
            products=len(products),
            float_products=tuple(left),
            rest=network.rest,
        )
        report.save(directory / REPORT)
        reports.append(report)

    try:
        write_directory(target, fill)
    finally:
        evaluation.close()
    return reports[0]


def _check_free(target: Path) -> None:
    ours = (target / NETWORK).is_file()
    if target.exists() and not ours and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target}: holds something else; name a new directory")


def _look(model: LoadedModel) -> Preprocess:
    assert isinstance(model.preprocess, Preprocess)
    return model.preprocess


def _read(model: LoadedModel, split: Split, count: int) -> tuple[Images, list[int]]:
    """Images spread evenly over a split, as the network sees them, with their labels."""
    transform = _look(model).transform()
    count = min(count, len(split))
    chosen = [i * len(split) // count for i in range(count)]
    return [transform(split.image(i))[None].numpy() for i in chosen], [int(split.labels[i]) for i in chosen]


def _write(directory: Path, model: LoadedModel, graph: Any) -> None:
    load_openvino().save_model(graph, directory / NETWORK, compress_to_fp16=False)
    card = {
        "task": model.task,
        "name": model.name,
        "int8": NETWORK,
        "classes": model.classes and list(model.classes),
        "preprocess": _look(model).to_dict(),
    }
    write_state(directory, {"card": card, "config": model.config and to_dict(model.config)})


def _size(model: LoadedModel) -> int:
    return sum(value.numel() * value.element_size() for value in model.model.state_dict().values())


def _stored(directory: Path) -> int:
    return sum((directory / NETWORK).with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin"))
