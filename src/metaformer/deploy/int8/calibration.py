"""Inputs of a graph for the images of a data set, and the graph in PyTorch to compare its int8 form with."""

from dataclasses import dataclass, replace

import torch

from metaformer.data.dataset import Source
from metaformer.deploy.export.write import Draft
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.exported import PIXELS, Arrays, ExportGraph
from metaformer.tasks.stream import ImageList


class TorchRuntime:
    """A graph computed by PyTorch in the place of its file.

    Args:
        graph: in evaluation mode.
        record: keep the inputs.
    """

    def __init__(self, graph: ExportGraph, record: bool = False) -> None:
        self.graph, self.record = graph, record
        self.inputs: list[Arrays] = []

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> Arrays:
        if self.record:
            self.inputs.append(inputs)
        outputs = self.graph(*map(torch.from_numpy, inputs.values()))
        return {name: value.numpy() for name, value in zip(self.graph.outputs, outputs, strict=True)}


@dataclass(frozen=True)
class Calibration:
    """Inputs of a graph."""

    inputs: list[Arrays]
    """One image each, of its own size; several for one image where the task evaluates it in parts."""
    indices: list[int]
    """Which images of the data set they are."""


def in_torch(draft: Draft, model: LoadedModel, record: bool = False) -> tuple[LoadedModel, TorchRuntime]:
    """The draft of a model in the place of its file, and what computes it."""
    runtime = TorchRuntime(draft.graph, record)
    network = model.spec.export.network(runtime, draft.card)
    preprocess = replace(draft.source.preprocess, **PIXELS)
    return replace(model, model=network, preprocess=preprocess), runtime


def calibration_inputs(draft: Draft, model: LoadedModel, source: Source, count: int) -> Calibration:
    """What the graph is given for images spread evenly over a data set, by the task's own preprocessing.

    Raises:
        BadImage: an image cannot be read.
    """
    model, runtime = in_torch(draft, model, record=True)
    predictor = model.spec.predictor(model, batch_size=1, workers=0)
    count = min(count, len(source))
    indices = [i * len(source) // count for i in range(count)]
    for index in indices:  # one at a time, as many large ones would not fit into memory
        image = source.image(index, model.preprocess.background)
        for _ in predictor.predict(ImageList(image)):
            pass
    return Calibration(runtime.inputs, indices)
