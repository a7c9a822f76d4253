"""Quantization of a trained network to a file in int8, for CPUs, with a report of its metric."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from metaformer.backbones.metaformer import Trunk
from metaformer.deploy.export.source import ExportSource
from metaformer.deploy.export.write import (
    OPSET,
    Step,
    check_target,
    draft_folder,
    draw_up,
    keep,
    write_compared,
)
from metaformer.deploy.int8.calibration import calibration_inputs, in_torch
from metaformer.deploy.int8.graph import GRAPHS, Int8Graph, Limit, load_nncf
from metaformer.deploy.int8.report import Figures, QuantizeReport, weight_bytes
from metaformer.errors import ConfigError, OptimizeError, OutputError
from metaformer.inference.evaluate import SplitEvaluation
from metaformer.inference.exported import INT8, exported_files, load_exported
from metaformer.inference.model import load_model
from metaformer.storage import as_path
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.classification.spec import SPEC as CLASSIFICATION
from metaformer.tasks.exported import ExportedNetwork, ExportOptions

COMPARED: Final = 50
"""Batches of the evaluation, evenly spread, on which results are compared one by one."""


def quantize(
    source: str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    image_size: int | None = None,
    max_objects: int | None = None,
    probabilities: bool = False,
    opset: int = OPSET,
    images: int = 300,
    calibrate_on: str | None = None,
    split: str | None = None,
    max_drop: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    ema: bool = False,
    raw: bool = False,
    on_step: Step = lambda step: None,
) -> QuantizeReport:
    """Quantize a network to int8, write it as an exported file, and evaluate both on the validation split.

    The file is what `export` writes: the suffix chooses OpenVINO (.xml, by NNCF) or ONNX Runtime (.onnx, by
    its own tool); it takes any number of images of any size where the network does, and `evaluate` and
    `predict` take it as they take a run. The float32 graph is compared with the network before it is
    quantized.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        data: data set directory; the run's own by default.
        out: the file, which ends in .xml or .onnx.
        checkpoint: weights for a model name; the published ones by default.
        class_names: class names, or a file with one a line, where nothing else gives them.
        image_size: height and width of the input, which is then fixed (default: any, where the network allows
            it).
        max_objects: detection: objects of an image, at most (default: the network's own, 100).
        probabilities: segmentation: a second output, the probabilities (B, K, H, W).
        opset: version of ONNX's operators.
        images: number of calibration images, spread evenly over the split.
        calibrate_on: split of the calibration images; the run's training split, or `train`, by default.
        split: split to evaluate on; the run's own, or `val`, by default.
        max_drop: largest loss of the task's metric on the validation images, such as 0.01; a file that loses
            more is not written. Before that, products are left in floating point: of a classifier for
            OpenVINO those that lose most on the calibration images (a network that has overfitted them loses
            little there: name a held-out split in `calibrate_on`), then those of the heads.
        batch_size: batch size of the evaluation; one for tasks whose images have different sizes.
        workers: processes that read images.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.
        on_step: called with a line of text before each step.

    Raises:
        ConfigError: an invalid value, or a source that is an exported file.
        DataError: the data set's layout is wrong, or an image cannot be read.
        MissingPackage: a package of the extra `int8` is not installed.
        OptimizeError: the graph does not compute what the network does, or int8 loses more than `max_drop`.
        OutputError: `out` cannot be written.
        WeightsError: the weights cannot be read or do not fit.
    """
    if images < 2:
        raise ConfigError(f"images is {images}: it must be at least 2")
    if max_drop is not None and not 0 < max_drop < 1:
        raise ConfigError(f"max_drop is {max_drop}: it must lie between 0 and 1")
    target = as_path(out, "out", OutputError)
    if target.suffix.lower() not in GRAPHS:
        raise ConfigError(f"{target}: the name of a file in int8 ends in {' or '.join(GRAPHS)}")
    check_target(target)
    if target.suffix.lower() == ".xml":
        load_nncf()  # a missing package is an error before the work begins
    on_step("loading the network")
    model = load_model(source, checkpoint, class_names=class_names, ema=ema, raw=raw)
    if isinstance(model.model, ExportedNetwork):
        raise ConfigError(f"{source}: is an exported file: quantize the run that it was made from")
    training = calibrate_on or (model.config.data.train if model.config else "train")
    validation = SplitEvaluation(data, split, batch_size, workers)
    with SplitEvaluation(data, training).opened(model) as evaluation, validation.opened(model):
        training_images = evaluation.loader.dataset.source  # missing data are an error before the work begins
    options = ExportOptions("uint8", max_objects, probabilities)
    draft = draw_up(
        ExportSource.of_model(model), options, image_size=image_size, opset=opset, on_step=on_step
    )
    own = replace(model.to(torch.device("cpu"), "none"), preprocess=draft.source.preprocess)
    with draft_folder() as folder:
        float_file, file = (folder / f"{name}{target.suffix.lower()}" for name in ("float", "network"))
        write_compared(draft, float_file, on_step)
        on_step("evaluating the network")
        original = validation.run(own)
        on_step(f"calibrating on images of {training}")
        calibration = calibration_inputs(draft, own, training_images, images)
        limit = None
        if max_drop is not None and own.spec is CLASSIFICATION:
            labels = [int(training_images.labels[i]) for i in calibration.indices]
            limit = Limit(labels, max_drop)
        graph = GRAPHS[target.suffix.lower()].read(draft.body)
        for names, kept in _attempts(graph, own.model):
            on_step(f"quantizing{names}")
            int8 = graph.quantized(calibration.inputs, kept, limit if graph.keeps_accuracy else None)
            card = int8.write(file, replace(draft.card, dtype=INT8))
            exported = load_exported(file)
            on_step("evaluating the file")
            found = replace(exported, config=own.config, held_out=own.held_out)
            with validation.opened(found) as evaluation:
                compared = _Compared(found, in_torch(draft, own)[0], evaluation.most)
                result = evaluation.run(compared)
            metric, before = next(iter(original.metrics.items()))
            drop = before - result.metrics[metric]
            if max_drop is None or drop <= max_drop:
                break
        else:
            raise OptimizeError(
                f"{target}: in int8 {metric} falls by {drop:.4f}, from {before:.4f} to "
                f"{result.metrics[metric]:.4f}, more than max_drop {max_drop}{names and ','}{names}: nothing "
                "was written; calibrate on more images (images) or other ones (calibrate_on), or export "
                "the network in float32"
            )
        parity = {"drop": drop, "agreement": compared.agreement, **compared.worst}
        card = int8.write(file, replace(card, parity=parity))
        keep(file, target, card)
        runtime: Any = found.model.runtime
        products, left = int8.products(), int8.float_products()
        return QuantizeReport(
            name=own.name,
            file=str(target),
            calibrated=len(calibration.indices),
            images=int(result.to_dict()["images"]),
            metric=metric,
            float32=Figures(original.metrics, weight_bytes(own.model)),
            int8=Figures(result.metrics, sum(one.stat().st_size for one in exported_files(target))),
            drop=drop,
            agreement=compared.agreement,
            differences=compared.worst,
            compared=compared.count,
            products=len(products),
            float_products=tuple(left),
            rest=runtime.float_dtype,
        )


def _attempts(graph: Int8Graph, network: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Products to leave in floating point, one attempt after the other, and what to say of them."""
    yield "", []
    heads = heads_of(network)
    yield (
        f" with {' and '.join(heads)} in floating point",
        [name for name, module in graph.products().items() if module.partition(".")[0] in heads],
    )


def heads_of(network: nn.Module) -> list[str]:
    """Names of a network's parts behind its backbone."""
    if isinstance(network, Trunk):
        return ["head"]
    parts = network.named_children()
    return [
        name for name, part in parts if not isinstance(part, Trunk) and any(True for _ in part.parameters())
    ]


class _Compared:
    """A file's outputs, of which those of some batches are compared with the graph's in PyTorch."""

    def __init__(self, exported: LoadedModel, reference: LoadedModel, batches: int) -> None:
        self.exported, self.reference, self.every = exported, reference, max(1, -(-batches // COMPARED))
        self.calls, self.count, self.sum = 0, 0, 0.0
        self.worst: dict[str, float] = {}

    def __call__(self, *inputs: Any) -> Any:
        found = self.exported.forward(*inputs)
        if self.calls % self.every == 0:
            task, expected = self.exported.spec.export, self.reference.forward(*inputs)
            for name, value in task.compare(expected, found).items():
                self.worst[name] = max(self.worst.get(name, 0.0), value)
            self.sum += task.agreement(expected, found)
            self.count += 1
        self.calls += 1
        return found

    @property
    def agreement(self) -> float:
        """Mean over the compared batches."""
        return self.sum / max(1, self.count)
