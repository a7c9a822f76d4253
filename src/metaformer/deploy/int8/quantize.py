"""Quantization of a trained classifier to int8, for CPUs, with a report of its accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.checkpoint.checkpoint import write_state
from metaformer.checkpoint.manifest import write_directory
from metaformer.data.preprocess import Preprocess
from metaformer.data.split import Split
from metaformer.deploy.int8.accuracy import Accuracy, QuantizeReport, compare
from metaformer.deploy.int8.graph import Images, calibrate, float_products, load_nncf, make_graph
from metaformer.errors import ConfigError, OutputError
from metaformer.inference.int8_model import NETWORK, Int8Network, load_openvino
from metaformer.inference.model import load_model
from metaformer.serialize import to_dict
from metaformer.storage import as_path
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
    ema: bool = False,
    raw: bool = False,
) -> QuantizeReport:
    """Quantize a classifier to int8 by NNCF, write it, and evaluate both networks on the validation split.

    The directory `out` holds OpenVINO's graph and weights, classes and preprocessing, and no code. `evaluate`
    and `predict` take it as they take a run.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        data: data set directory; the run's own by default.
        out: directory to write; one that `quantize` wrote is replaced.
        checkpoint: weights for a model name; the published ones by default.
        class_names: class names, or a file with one a line, where nothing else gives them.
        image_size: height and width of the network's input, which is then fixed; the source's by default.
        images: number of calibration images, spread evenly over the split.
        calibrate_on: split of the calibration images; the run's training split, or `train`, by default.
        split: split to evaluate on; the run's own, or `val`, by default.
        max_drop: largest loss of top-1 on the calibration images, such as 0.01; the products that lose most
            are left in floating point until it is met. A network that has overfitted its training images
            loses little on them: name a held-out split in `calibrate_on`. None quantizes all.
        batch_size: batch size of the evaluation.
        workers: processes that read images.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.

    Raises:
        ConfigError: an invalid value, or a source that is no classifier with floating-point weights.
        DataError: the data set's layout is wrong, or an image cannot be read.
        MissingPackage: OpenVINO or NNCF is not installed.
        OptimizeError: OpenVINO's form of the network does not compute the same.
        OutputError: `out` holds something else, or cannot be written.
        WeightsError: the weights cannot be read or do not fit.
    """
    if images < 2 or not (max_drop is None or 0 < max_drop < 1):
        raise ConfigError("quantize: images must be at least 2, max_drop between 0 and 1")
    target = as_path(out, "out", OutputError)
    _check_free(target)
    load_nncf()  # a missing package is an error before the work begins
    model = load_model(source, checkpoint, class_names=class_names, ema=ema, raw=raw)
    if model.spec is not CLASSIFICATION:
        raise ConfigError(f"{source}: for {model.spec.title}; quantize takes {CLASSIFICATION.title}")
    model = model.with_preprocess(image_size=image_size).to(CPU, "none")
    if isinstance(model.model, Int8Network):
        raise ConfigError(f"{source}: is in int8 already; quantize the network that it was made from")
    run = model.config
    training = calibrate_on or (run.data.train if run else "train")
    calibration_split = open_evaluation_split(model, data, training, allow_missing=True)
    val = open_evaluation_split(model, data, split)
    calibration, labels = _read(model, calibration_split, images)
    graph = make_graph(model.model, torch.from_numpy(np.concatenate(calibration[:2])))
    quantized = calibrate(graph, calibration, labels, max_drop)
    evaluation = ClassificationEvaluation(val, _preprocess(model), batch_size=batch_size, workers=workers)
    reports: list[QuantizeReport] = []

    def fill(directory: Path) -> None:
        _write(directory, model, quantized)
        network = Int8Network(directory / NETWORK)  # the written network is evaluated
        result = compare(evaluation, model.forward, network)
        products, left = float_products(quantized)
        report = QuantizeReport(
            name=model.name,
            directory=str(target),
            calibrated=len(calibration),
            images=result.original.images,
            float32=Accuracy(result.original.top1, result.original.loss, _weight_bytes(model)),
            int8=Accuracy(result.quantized.top1, result.quantized.loss, _file_bytes(directory)),
            agreement=result.agreement,
            mean_difference=result.mean_difference,
            largest_difference=result.largest_difference,
            largest_logit=result.largest_logit,
            products=len(products),
            float_products=tuple(left),
            rest=network.float_dtype,
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


def _preprocess(model: LoadedModel) -> Preprocess:
    assert isinstance(model.preprocess, Preprocess)
    return model.preprocess


def _read(model: LoadedModel, split: Split, count: int) -> tuple[Images, list[int]]:
    """Preprocessed images spread evenly over a split, with their labels."""
    preprocess = _preprocess(model)
    transform = preprocess.transform()
    count = min(count, len(split))
    indices = [i * len(split) // count for i in range(count)]
    images = [transform(split.image(i, preprocess.background))[None].numpy() for i in indices]
    return images, [int(split.labels[i]) for i in indices]


def _write(directory: Path, model: LoadedModel, graph: Any) -> None:
    load_openvino().save_model(graph, directory / NETWORK, compress_to_fp16=False)
    card = {
        "task": model.task,
        "name": model.name,
        "int8": NETWORK,
        "classes": model.classes and list(model.classes),
        "preprocess": _preprocess(model).to_dict(),
    }
    write_state(directory, {"card": card, "config": model.config and to_dict(model.config)})


def _weight_bytes(model: LoadedModel) -> int:
    return sum(value.numel() * value.element_size() for value in model.model.state_dict().values())


def _file_bytes(directory: Path) -> int:
    return sum((directory / NETWORK).with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin"))
