"""A network with int8 weights and products, in OpenVINO's form: data, no code; it runs on the CPU."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError, MissingPackage, SizeError, WeightsError

NETWORK: Final = "network.xml"
"""The graph in a checkpoint directory; its weights lie beside it, in `network.bin`."""
SHAPES: Final = 4
"""Compiled forms that are kept, one for each size of batch."""


class Int8Network(nn.Module):
    """A quantized classifier: images (B, in_chans, H, W) to logits (B, K), float32, where the images are.

    OpenVINO compiles it, in a second or so, for each size of batch. What is not in int8 it computes in bf16
    where the processor has that, else in float32. PyTorch's number of threads holds for it too.

    Args:
        file: the graph, as `metaformer.quantize` writes it.

    Raises:
        MissingPackage: OpenVINO is not installed.
        WeightsError: the file is none that it can read.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._openvino = load_openvino()
        try:
            self._graph = self._openvino.Core().read_model(file)
        except RuntimeError as error:
            raise WeightsError(f"{file}: OpenVINO cannot read it ({error})") from error
        _, *shape = (part.get_max_length() for part in self._graph.input().get_partial_shape())
        self.in_chans, *size = shape
        self.image_size = tuple(size)
        self.num_classes = int(self._graph.output().get_partial_shape()[1].get_length())
        self._compiled: dict[tuple[int, int], Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Raises:
            SizeError: images of another size than it was quantized for.
            ConfigError: mixed precision is on, of which it would take no notice.
        """
        if torch.is_autocast_enabled(images.device.type):
            raise ConfigError("amp: an int8 network chooses its own types: leave amp out")
        wanted = (self.in_chans, *self.image_size)
        if tuple(images.shape[1:]) != wanted:
            raise SizeError(
                f"images are {tuple(images.shape[1:])}, this int8 network was made for {wanted}: "
                "quantize the network again with image_size, or leave image_size out"
            )
        if not len(images):
            return images.new_zeros(0, self.num_classes, dtype=torch.float32)
        answer = self._at(len(images))(images.detach().float().cpu().contiguous().numpy())[0]
        return torch.from_numpy(answer.copy()).to(images.device)  # the next call writes to the same memory

    @property
    def rest(self) -> str:
        """The type in which this machine computes what is not in int8, such as `bfloat16`."""
        hint = self._at(1).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[hint]

    def _at(self, batch: int) -> Any:
        """Compiled for that many images; with the batch left open it would be a quarter slower."""
        key = batch, torch.get_num_threads()
        if key not in self._compiled:
            if len(self._compiled) == SHAPES:
                del self._compiled[next(iter(self._compiled))]
            graph = self._graph.clone()
            graph.reshape([batch, self.in_chans, *self.image_size])
            self._compiled[key] = self._openvino.compile_model(graph, "CPU", settings())
        return self._compiled[key]


def settings() -> dict[str, Any]:
    """How OpenVINO is to compile: all of PyTorch's threads on one batch."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}


def load_openvino() -> Any:
    """Import OpenVINO.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        with uncounted():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingPackage("openvino", "int8", "an int8 network") from error


@contextmanager
def uncounted() -> Iterator[None]:
    """Keep OpenVINO and NNCF from reporting their use over the network, which they do unless told not to.

    Both leave it where they believe that a build server runs them; there is no other switch in the process.
    """
    names = ("CI", "NNCF_CI")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "true"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
