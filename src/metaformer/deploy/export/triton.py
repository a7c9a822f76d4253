"""A model repository of Triton Inference Server with an exported file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from metaformer.inference.exported import exported_files, load_onnxruntime, load_openvino
from metaformer.storage import atomic_bytes, check_replaceable, check_writable, write_text
from metaformer.tasks.exported import ExportCard

MAX_BATCH: Final = 8
"""Images that Triton computes at once, at most, where the file takes any number."""
BACKENDS: Final = {".onnx": "onnxruntime", ".xml": "openvino"}
TYPES: Final = {
    "uint8": "TYPE_UINT8",
    "u8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "i32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "i64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "f16": "TYPE_FP16",
    "float": "TYPE_FP32",
    "f32": "TYPE_FP32",
}
"""Triton's types by ONNX Runtime's and OpenVINO's names."""
CONFIG: Final = "config.pbtxt"
LABELS: Final = "labels.txt"


class Port(NamedTuple):
    """An input or output of a file."""

    name: str
    type: str
    shape: tuple[int, ...]
    """−1 for any number."""


def check_repository(file: Path, folder: Path) -> None:
    """Check that the repository of a file can be written.

    Raises:
        OutputError: it cannot.
    """
    check_writable(folder / CONFIG)
    for target in _files(file, folder).values():
        check_replaceable(target)


def write_repository(file: Path, card: ExportCard, folder: Path) -> Path:
    """Write FOLDER/NAME for a file NAME.onnx or NAME.xml: configuration, class names and the file.

    The server collects requests to batches, unless the file takes a fixed number of images.

    Args:
        file: the exported file.
        card: what it says of itself.
        folder: the repository, which may hold other models.

    Raises:
        OutputError: it cannot be written.
    """
    for source, target in _files(file, folder).items():
        with atomic_bytes(target) as stream:
            stream.write(source.read_bytes())
    model = folder / file.stem
    write_text(model / LABELS, "".join(f"{name}\n" for name in card.class_names))
    inputs, outputs = (openvino_ports if file.suffix.lower() == ".xml" else onnx_ports)(file)
    write_text(model / CONFIG, config(file, card, inputs, outputs))  # last: it makes it a model
    return model


def _files(file: Path, folder: Path) -> dict[Path, Path]:
    """Where the parts of a file go."""
    version = folder / file.stem / "1"
    return {part: version / f"model{part.suffix.lower()}" for part in exported_files(file)}


def config(file: Path, card: ExportCard, inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    """Text of the configuration, a `ModelConfig` of Triton's protocol."""
    batched = card.batch is None
    lines = [
        f"name: {json.dumps(file.stem, ensure_ascii=False)}",
        f'backend: "{BACKENDS[file.suffix.lower()]}"',
        f"max_batch_size: {MAX_BATCH if batched else 0}",
        *(line for port in inputs for line in _port("input", port, batched)),
        *(line for port in outputs for line in _port("output", port, batched)),
        *(["dynamic_batching { }"] if batched else []),
    ]
    return "\n".join(lines) + "\n"


def _port(kind: str, port: Port, batched: bool) -> Iterator[str]:
    shape = port.shape[1:] if batched else port.shape  # Triton adds the batch itself
    yield f"{kind} {{"
    yield f'  name: "{port.name}"'
    yield f"  data_type: {TYPES[port.type]}"
    yield f"  dims: [{', '.join(map(str, shape or (1,)))}]"
    if not shape:
        yield "  reshape { shape: [] }"
    if port.name == "probabilities" and len(port.shape) == 2:
        yield f'  label_filename: "{LABELS}"'
    yield "}"


def onnx_ports(file: Path) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of an ONNX file."""
    session = load_onnxruntime().InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])

    def ports(values: Sequence[Any]) -> list[Port]:
        return [
            Port(
                one.name,
                one.type.removeprefix("tensor(").removesuffix(")"),
                tuple(side if isinstance(side, int) else -1 for side in one.shape),
            )
            for one in values
        ]

    return ports(session.get_inputs()), ports(session.get_outputs())


def openvino_ports(file: Path) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of OpenVINO's files."""
    graph = load_openvino().Core().read_model(file)

    def ports(values: Sequence[Any]) -> list[Port]:
        return [
            Port(
                one.get_any_name(),
                one.get_element_type().get_type_name(),
                tuple(side.get_length() if side.is_static else -1 for side in one.get_partial_shape()),
            )
            for one in values
        ]

    return ports(graph.inputs), ports(graph.outputs)
