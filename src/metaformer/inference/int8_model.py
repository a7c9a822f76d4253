"""Int8 classifier on the CPU, from OpenVINO's graph and weights."""

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError, MissingPackage, SizeError, WeightsError
from metaformer.serialize import Range, decode, errors_at, shown
from metaformer.storage import need_regular, read_bytes

NETWORK: Final = "network.xml"
"""The graph's file in a checkpoint directory; the weights are beside it in `network.bin`."""
_Side = Annotated[int, Range(1, 1_000_000, integer=True)]
MAX_COMPILED: Final = 4
"""Compiled graphs that are cached, one for each batch size."""


class Int8Network(nn.Module):
    """Quantized classifier: images (B, in_chans, H, W) to logits (B, K), float32, on the images' device.

    OpenVINO compiles the graph, in a second or so, for each batch size. What is not in int8 it computes in
    bf16 where the processor supports it, else in float32. It runs on as many threads as PyTorch.

    Args:
        file: the graph, as `metaformer.quantize` writes it.

    Raises:
        MissingPackage: OpenVINO is not installed.
        WeightsError: OpenVINO cannot read the file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._openvino = load_openvino()
        if not read_bytes(file, WeightsError).lstrip(b"\xef\xbb\xbf").startswith(b"<"):
            raise WeightsError(f"{file}: is no XML")  # OpenVINO would try a dozen other formats
        if os.path.lexists(file.with_suffix(".bin")):  # it would block on a pipe
            need_regular(file.with_suffix(".bin"), WeightsError)
        try:
            self._graph = self._openvino.Core().read_model(file)
            images, logits = (_shape(port) for port in (self._graph.input(), self._graph.output()))
        except Exception as error:  # OpenVINO has no class of its own for damaged files
            reason = shown(" ".join(str(error).split()), quote=False)
            raise WeightsError(f"{file}: OpenVINO cannot read it ({reason})") from error
        with errors_at(f"{file}: is no classifier in int8", WeightsError):
            self.in_chans, *size = decode(tuple[_Side, _Side, _Side], images[1:], "its input (C, H, W)")
            (self.num_classes,) = decode(tuple[_Side], logits[1:], "its output (classes)")
        self.image_size = tuple(size)
        self._compiled: dict[tuple[int, int], Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Raises:
            SizeError: images of another size than the network was quantized for.
            ConfigError: autocast is on, which would have no effect.
        """
        if torch.is_autocast_enabled(images.device.type):
            raise ConfigError("amp: an int8 network has types of its own: leave amp out")
        expected = (self.in_chans, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise SizeError(
                f"images are {tuple(images.shape[1:])}, this int8 network is for {expected}: "
                "quantize the network again with image_size, or leave image_size out"
            )
        if not len(images):
            return images.new_zeros(0, self.num_classes, dtype=torch.float32)
        logits = self._compile(len(images))(images.detach().float().cpu().contiguous().numpy())[0]
        return torch.from_numpy(logits.copy()).to(images.device)  # the next call overwrites the buffer

    @property
    def float_dtype(self) -> str:
        """The type in which this machine computes what is not in int8, such as `bfloat16`."""
        hint = self._compile(1).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[hint]

    def _compile(self, batch: int) -> Any:
        """The graph compiled for a batch size; with an open batch size it would be a quarter slower."""
        key = batch, torch.get_num_threads()
        if key not in self._compiled:
            if len(self._compiled) == MAX_COMPILED:
                del self._compiled[next(iter(self._compiled))]
            try:
                graph = self._graph.clone()
                graph.reshape([batch, self.in_chans, *self.image_size])
                with contained():
                    self._compiled[key] = self._openvino.compile_model(graph, "CPU", compile_options())
            except RuntimeError as error:
                reason = shown(" ".join(str(error).split()), quote=False)
                raise WeightsError(f"{self.file}: OpenVINO cannot compile it ({reason})") from error
        return self._compiled[key]


def _shape(port: Any) -> tuple[int, ...]:
    """Sizes of an input or output of a graph; -1 where one is open."""
    return tuple(
        int(size.get_length()) if size.is_static else -1 if i else 1
        for i, size in enumerate(port.get_partial_shape())
    )


def compile_options() -> dict[str, Any]:
    """OpenVINO's options: one batch at a time, on all of PyTorch's threads."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}


def load_openvino() -> Any:
    """Import OpenVINO.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        with contained():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingPackage("openvino", "int8", "an int8 network") from error


class _SignalStack(ctypes.Structure):
    """Linux's `stack_t`."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def contained() -> Iterator[None]:
    """Keep OpenVINO and NNCF from what is not theirs: the network, and this thread's stack for signals.

    They report their use unless they run on a build server, by these variables; there is no other switch
    within a process. OpenVINO's CPU plugin gives the thread a stack for handlers of signals and frees it with
    itself: the next signal, such as Ctrl-C, is a segmentation fault.
    """
    names = ("CI", "NNCF_CI")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "true"))
    stack, libc = _SignalStack(), ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None:
        libc.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        if libc is not None:
            libc.sigaltstack(ctypes.byref(stack), None)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
