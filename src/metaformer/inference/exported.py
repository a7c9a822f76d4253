"""Exported files: the graph computed by ONNX Runtime or OpenVINO, with what its metadata say of it."""

import ctypes
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from metaformer.data.class_lists import read_names
from metaformer.errors import ConfigError, MissingPackage, WeightsError
from metaformer.serialize import errors_at, parse_json, shown
from metaformer.storage import need_regular, read_bytes, read_json
from metaformer.tasks import TASKS
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.exported import PIXELS, SCHEMA, Arrays, ExportCard

KEY: Final = "metaformer"
"""Key of the card in a file's metadata."""
LARGEST: Final = 2**31 - 1
"""Bytes of an ONNX file: Protocol Buffers take no more."""
MAX_COMPILED: Final = 4
"""Graphs that OpenVINO has compiled, one for each shape of images, that are kept."""
INT8: Final = "int8"
"""`ExportCard.dtype` of files that `metaformer.quantize` writes."""
FILES: Final = "files"
"""Key of the hashes in the JSON file beside an exported one."""


class OnnxRuntime:
    """The graph of an ONNX file, on the CPU, on as many threads as PyTorch.

    Args:
        file: the file.

    Raises:
        MissingPackage: ONNX Runtime is not installed.
        WeightsError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        runtime = load_onnxruntime()
        self.file, data = file, read_bytes(file, WeightsError, largest=LARGEST)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # its errors come as exceptions
        try:
            self._session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a class of its own for each kind of damage
            raise _unreadable(file, "ONNX Runtime", error) from error
        self.card: str | None = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        self.content = data
        """What the card's hash is of; the metadata follow it."""
        self.float_dtype = "float32"
        """Type in which it computes what is not in int8."""

    def run(self, inputs: Arrays) -> Arrays:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, inputs), strict=True))


class OpenVINO:
    """The graph of OpenVINO's .xml and .bin files, on the CPU, on as many threads as PyTorch.

    It is compiled, in a second or so, for each shape of images.

    Args:
        file: the .xml file.

    Raises:
        MissingPackage: OpenVINO is not installed.
        WeightsError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._openvino = load_openvino()
        self.file, weights = file, file.with_suffix(".bin")
        if not read_bytes(file, WeightsError).lstrip(b"\xef\xbb\xbf").startswith(b"<"):
            raise WeightsError(f"{file}: is no XML")  # OpenVINO would try a dozen other formats
        need_regular(weights, WeightsError)  # it would block on a pipe
        try:
            self._graph = self._openvino.Core().read_model(file)
            info = self._graph.get_rt_info()
            self.card: str | None = info[KEY].astype(str) if KEY in info else None  # not UTF-8 is an error
        except Exception as error:  # OpenVINO has no class of its own for damaged files
            raise _unreadable(file, "OpenVINO", error) from error
        self.content = read_bytes(weights, WeightsError, largest=sys.maxsize)
        """What the card's hash is of."""
        self.options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        """OpenVINO's options beside the number of threads; by default it may compute in bfloat16."""
        self._compiled: dict[Any, Any] = {}

    @property
    def float_dtype(self) -> str:
        """Type in which this machine computes what is not in int8, such as `bfloat16`, after a first run."""
        hint = next(iter(self._compiled.values())).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[hint]

    def run(self, inputs: Arrays) -> Arrays:
        found = self._compile(inputs["images"].shape)(inputs)
        # the next call overwrites the buffers
        return {output.get_any_name(): found[output].copy() for output in found}

    def _compile(self, shape: tuple[int, ...]) -> Any:
        """The graph compiled for a shape of images: with an open one it would be a quarter slower."""
        key = shape, torch.get_num_threads()
        if key not in self._compiled:
            if len(self._compiled) == MAX_COMPILED:
                del self._compiled[next(iter(self._compiled))]
            try:
                graph = self._graph.clone()
                graph.reshape(
                    {"images": list(shape), **({"sizes": [shape[0], 2]} if len(graph.inputs) > 1 else {})}
                )
                with contained():
                    self._compiled[key] = self._openvino.compile_model(
                        graph, "CPU", {**compile_options(), **self.options}
                    )
            except RuntimeError as error:
                raise _unreadable(self.file, "OpenVINO", error) from error
        return self._compiled[key]


RUNTIMES: Final[dict[str, Callable[[Path], Any]]] = {".onnx": OnnxRuntime, ".xml": OpenVINO}
"""What computes a file, by its ending."""


def is_exported(source: str | Path) -> bool:
    """Whether a name is that of an exported file."""
    return Path(source).suffix.lower() in RUNTIMES


def open_exported(file: str | Path) -> tuple[Any, ExportCard]:
    """The program that computes an exported file, with the file loaded, and what the file says of itself.

    Raises:
        MissingPackage: the program is not installed.
        WeightsError: the file is damaged, or its metadata do not fit.
    """
    path = Path(file)
    runtime = RUNTIMES[path.suffix.lower()](path)
    card = read_card(path, runtime)
    if card.dtype == INT8 and isinstance(runtime, OpenVINO):
        runtime.options.clear()  # what int8 leaves is computed in the type that is fastest here
    return runtime, card


def load_exported(file: str | Path) -> LoadedModel:
    """Load an exported file in the place of the network that it was made from.

    Raises:
        ConfigError: it has no task, as that of a backbone.
        MissingPackage: the program that computes it is not installed.
        WeightsError: it is damaged, or its metadata do not fit.
    """
    runtime, card = open_exported(file)
    if card.task is None:
        raise ConfigError(f"{file}: features of {card.name}: there is no task to predict or to evaluate")
    if card.task not in TASKS:
        raise WeightsError(f"{file}: task {shown(card.task)} is not known to this version")
    spec, count = TASKS[card.task], card.num_classes
    with errors_at(file, WeightsError):
        classes = None if card.classes is None else read_names(list(card.classes), count)
        preprocess = spec.export.read_preprocess(card.preprocess)
        metadata = spec.export.read_metadata(card.metadata, count)
    if card.input == "uint8":
        preprocess = replace(preprocess, **PIXELS)
    return LoadedModel(spec, card.name, spec.export.network(runtime, card), preprocess, classes, metadata)


def read_card(file: Path, runtime: Any) -> ExportCard:
    """What a file says of itself, compared with its content and with the JSON file beside it, if any.

    Raises:
        WeightsError: it says nothing, is of another version, or does not fit.
    """
    if runtime.card is None:
        raise WeightsError(
            f"{file}: has no metadata of this library under {KEY!r}: metaformer export writes them"
        )
    values = parse_json(runtime.card, file, WeightsError)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else None
        raise WeightsError(
            f"{file}: metadata of schema {shown(found)}, this version reads {SCHEMA}: export it again"
        )
    with errors_at(file, WeightsError):
        card = ExportCard.from_dict(values)
    if not card.content.fits(runtime.content):
        raise WeightsError(f"{file}: its content is not what its metadata say: it is damaged, or was changed")
    _check_beside(file, values)
    return card


def _check_beside(file: Path, values: Any) -> None:
    """Compare a file with the JSON file beside it, where that is of this one."""
    beside = file.with_suffix(".json")
    if not os.path.lexists(beside):
        return
    there = read_json(beside, WeightsError)
    hashes = there.pop(FILES, None) if isinstance(there, dict) else None
    if not isinstance(hashes, dict) or file.name not in hashes:  # of another program, or another format
        return
    if there != values or hashes != file_hashes(file):
        raise WeightsError(
            f"{file}: is not the file that {beside} describes: export it again, or delete that one"
        )


def exported_files(file: Path) -> list[Path]:
    """An exported file, and its weights where they are in another."""
    return [file, file.with_suffix(".bin")] if file.suffix.lower() == ".xml" else [file]


def file_hashes(file: Path) -> dict[str, str]:
    """SHA-256 of `exported_files` by name."""
    return {
        one.name: hashlib.sha256(read_bytes(one, WeightsError, largest=sys.maxsize)).hexdigest()
        for one in exported_files(file)
    }


def _unreadable(file: Path, program: str, error: Exception) -> WeightsError:
    reason = shown(" ".join(str(error).split()), quote=False)
    return WeightsError(f"{file}: {program} cannot read it ({reason})")


def load_onnxruntime() -> Any:
    """Import ONNX Runtime, which does not report its use to its maker then.

    Raises:
        MissingPackage: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingPackage("onnxruntime", "onnx", "an ONNX file") from error


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
        raise MissingPackage("openvino", "openvino", "an OpenVINO file") from error


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
