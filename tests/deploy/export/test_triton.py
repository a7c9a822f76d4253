"""Repositories of Triton Inference Server, by the part of its published schema that they use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import openvino
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import TensorProto, helper

from metaformer.deploy.export.triton import check_repository, write_repository
from metaformer.errors import OutputError
from metaformer.tasks.exported import ExportCard

Field = descriptor_pb2.FieldDescriptorProto
SCHEMA: dict[str, dict[str, tuple[int, int, str]]] = {
    "ModelConfig": {
        "name": (1, Field.TYPE_STRING, ""),
        "max_batch_size": (4, Field.TYPE_INT32, ""),
        "input": (5, Field.TYPE_MESSAGE, "*ModelInput"),
        "output": (6, Field.TYPE_MESSAGE, "*ModelOutput"),
        "dynamic_batching": (11, Field.TYPE_MESSAGE, "ModelDynamicBatching"),
        "backend": (17, Field.TYPE_STRING, ""),
    },
    "ModelInput": {
        "name": (1, Field.TYPE_STRING, ""),
        "data_type": (2, Field.TYPE_ENUM, "DataType"),
        "dims": (4, Field.TYPE_INT64, "*"),
        "reshape": (5, Field.TYPE_MESSAGE, "ModelTensorReshape"),
    },
    "ModelOutput": {
        "name": (1, Field.TYPE_STRING, ""),
        "data_type": (2, Field.TYPE_ENUM, "DataType"),
        "dims": (3, Field.TYPE_INT64, "*"),
        "label_filename": (4, Field.TYPE_STRING, ""),
        "reshape": (5, Field.TYPE_MESSAGE, "ModelTensorReshape"),
    },
    "ModelTensorReshape": {"shape": (1, Field.TYPE_INT64, "*")},
    "ModelDynamicBatching": {},
}
"""Fields of messages: number, type, and its name, with a star where there may be several."""
NUMBERS = {
    "TYPE_INVALID": 0,
    "TYPE_UINT8": 2,
    "TYPE_INT32": 8,
    "TYPE_INT64": 9,
    "TYPE_FP16": 10,
    "TYPE_FP32": 11,
}
"""Of `DataType`."""


@pytest.fixture(scope="module")
def config_class() -> Any:
    """Triton's `ModelConfig`."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    enum = file.enum_type.add(name="DataType")
    for name, number in NUMBERS.items():
        enum.value.add(name=name, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, of) in fields.items():
            label = Field.LABEL_REPEATED if of.startswith("*") else Field.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, type=kind, label=label)
            if of.strip("*"):
                added.type_name = f".inference.{of.strip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


CARD = ExportCard(
    schema=1,
    task="detect",
    name="net",
    classes=('"quoted" ant', "пчела"),
    num_classes=2,
    preprocess={},
    resize={},
    input="uint8",
    channels=3,
    batch=None,
    image_size=None,
    min_size=32,
    outputs=("boxes", "count"),
    dtype="float32",
)


def write_file(path: Path, batch: int | str = "batch") -> Path:
    """A file with the inputs and some outputs of a detector."""
    values = {
        "images": (TensorProto.UINT8, [batch, "height", "width", 3]),
        "sizes": (TensorProto.INT64, [batch, 2]),
        "count": (TensorProto.INT64, [batch]),
        "probabilities": (TensorProto.FLOAT, [batch, 2]),
    }
    images, sizes, count, probabilities = (
        helper.make_tensor_value_info(name, *value) for name, value in values.items()
    )
    nodes = [
        helper.make_node("ReduceSum", ["sizes", "last"], ["count"], keepdims=0),
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats", "rest"], ["largest"], keepdims=0),
        helper.make_node("Unsqueeze", ["largest", "last"], ["column"]),
        helper.make_node("Cast", ["sizes"], ["row"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["column", "row"], ["probabilities"]),
    ]
    axes = [
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        helper.make_tensor("rest", TensorProto.INT64, [3], [1, 2, 3]),
    ]
    graph = helper.make_graph(nodes, "net", [images, sizes], [count, probabilities], axes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if path.suffix == ".onnx":
        onnx.save(model, path)
    else:
        openvino.save_model(openvino.Core().read_model(model.SerializeToString()), path)
    return path


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_repository_is_one_by_the_schema(config_class: Any, tmp_path: Path, suffix: str) -> None:
    file = write_file(tmp_path / f"my net{suffix}")
    model = write_repository(file, CARD, tmp_path / "models")
    config = text_format.Parse((model / "config.pbtxt").read_text(), config_class())
    assert model == tmp_path / "models" / "my net" and config.name == model.name
    assert config.backend == {".onnx": "onnxruntime", ".xml": "openvino"}[suffix]
    assert config.max_batch_size == 8 and config.HasField("dynamic_batching")
    found = {one.name: (one.data_type, list(one.dims)) for one in (*config.input, *config.output)}
    assert found == {
        "images": (NUMBERS["TYPE_UINT8"], [-1, -1, 3]),
        "sizes": (NUMBERS["TYPE_INT64"], [2]),
        "count": (NUMBERS["TYPE_INT64"], [1]),
        "probabilities": (NUMBERS["TYPE_FP32"], [2]),
    }
    count, probabilities = sorted(config.output, key=lambda one: one.name)
    assert count.HasField("reshape") and not count.reshape.shape  # a number for each image
    assert (model / probabilities.label_filename).read_text().splitlines() == list(CARD.classes or ())
    assert (model / "1" / f"model{suffix}").read_bytes() == file.read_bytes()
    if suffix == ".xml":
        assert (model / "1" / "model.bin").read_bytes() == file.with_suffix(".bin").read_bytes()


def test_a_fixed_batch_is_not_collected(config_class: Any, tmp_path: Path) -> None:
    file = write_file(tmp_path / 'a"b.onnx', batch=4)
    model = write_repository(file, replace(CARD, batch=4), tmp_path)
    config = text_format.Parse((model / "config.pbtxt").read_text(), config_class())
    assert config.name == 'a"b' and config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert [list(one.dims) for one in config.input] == [[4, -1, -1, 3], [4, 2]]


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        check_repository(tmp_path / "net.onnx", tmp_path / "file")
    (tmp_path / "models" / "net" / "1" / "model.onnx").mkdir(parents=True)
    with pytest.raises(OutputError, match="ordinary file"):
        check_repository(tmp_path / "net.onnx", tmp_path / "models")
