"""Export: a trained network as an ONNX file or as OpenVINO's, compared with the network before it is kept."""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from metaformer.deploy.export.dialects import flat, model_info
from metaformer.deploy.export.graph import to_bytes, trace
from metaformer.deploy.export.operators import OPSETS, load_onnxscript
from metaformer.deploy.export.parity import compare
from metaformer.deploy.export.source import ExportSource, sized, trunk_of
from metaformer.deploy.export.triton import check_repository, write_repository
from metaformer.errors import ConfigError, MetaFormerError, OutputError
from metaformer.inference.exported import (
    FILES,
    KEY,
    RUNTIMES,
    exported_files,
    file_hashes,
    load_onnxruntime,
    load_openvino,
)
from metaformer.inference.model import load_model
from metaformer.report.readable import Readable
from metaformer.serialize import POSITIVE_INT
from metaformer.storage import as_path, atomic_bytes, atomic_path, check_replaceable, check_writable
from metaformer.tasks import TASKS
from metaformer.tasks.exported import (
    INPUTS,
    SCHEMA,
    Content,
    ExportCard,
    ExportGraph,
    ExportOptions,
)
from metaformer.weights.io import state_sha256

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}
OPSET: Final = 20
"""Version of ONNX's operators that is written where none is asked for."""
RUNNER: Final = "run.py"
"""The program that predicts with an ONNX file and needs no PyTorch, in the folder that is asked for."""
Step = Callable[[str], object]


@dataclass(frozen=True)
class Draft:
    """A network's graph before it is written."""

    source: ExportSource
    graph: ExportGraph
    """What the file computes, in PyTorch."""
    body: bytes
    """The same as an ONNX model."""
    card: ExportCard


@dataclass(frozen=True, repr=False)
class Exported(Readable):
    """A written file."""

    path: Path
    card: ExportCard
    """What it says of itself, with the differences from the network."""

    def text(self) -> str:
        """The file in two lines."""
        card = self.card
        batch = "any number of images" if card.batch is None else f"{card.batch} images at once"
        size = "any size" if card.image_size is None else "{}×{} pixels".format(*card.image_size)
        worst = ", ".join(f"{name} {value:.1e}" for name, value in card.parity.items())
        megabytes = sum(file.stat().st_size for file in exported_files(self.path)) / 1e6
        return (
            f"{self.path}: {card.name}, {batch} of {size}, {megabytes:.1f} MB\n"
            f"largest differences from the network: {worst}"
        )


def export(
    source: str | Path | nn.Module,
    path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    batch: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    dtype: Literal["fp32", "fp16"] = "fp32",
    input: Literal["uint8", "float"] = "uint8",
    max_objects: int | None = None,
    probabilities: bool = False,
    ema: bool = False,
    raw: bool = False,
    runner: str | Path | None = None,
    triton: str | Path | None = None,
    on_step: Step = lambda step: None,
) -> Exported:
    """Write a network as a file that runs without PyTorch, with its classes and preprocessing.

    The suffix chooses the format: .onnx for ONNX Runtime, .xml (with .bin) for OpenVINO. Its input `images`
    are pixels (B, H, W, 3) of 0 … 255 in RGB, which the graph normalizes; segmenters and detectors also take
    `sizes` (B, 2), height and width of each image inside the padded batch. Classifiers give `probabilities`
    (B, K); segmenters `labels` (B, H, W); detectors `boxes` (B, N, 4), `scores` and `classes` (B, N), `count`
    (B,) and, with masks, `masks` (B, N, 28, 28), non-maximum suppression included. The file is compared with
    the network on images of several sizes; one that differs is not written. Beside it, a JSON file says the
    same as its metadata.

    Args:
        source: run directory (its best weights), checkpoint directory, model name, or a network.
        path: the file, which ends in .onnx or .xml.
        checkpoint: weights for a model name.
        class_names: class names, or a file with one a line, where nothing else gives them.
        batch: images at once (default: any number).
        image_size: height and width of the input (default: any, where the network allows it).
        opset: version of ONNX's operators.
        dtype: type of the weights; fp16 halves the file and changes results by about a percent.
        input: `uint8` for pixels, or `float` for normalized images (B, C, H, W).
        max_objects: detection: objects of an image, at most (default: the network's own, 100).
        probabilities: segmentation: a second output, the probabilities (B, K, H, W); with them, evaluate and
            predict give label maps of the images' own size exactly.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.
        runner: a folder for `run.py`, which predicts with an ONNX file and needs numpy, pillow and
            onnxruntime alone.
        triton: a folder for a model repository of Triton Inference Server with the file.
        on_step: called with a line of text before each step.

    Raises:
        ConfigError: another suffix, a value out of range, or an option of another task.
        MissingPackage: a package of the extra `onnx` or `openvino` is not installed.
        OptimizeError: the network has no such form, or the file does not compute what the network does.
        OutputError: `path`, `runner` or `triton` cannot be written.
        WeightsError: the weights cannot be read or do not fit.
    """
    target = as_path(path, "path", OutputError)
    check_target(target)
    options = ExportOptions(input, max_objects, probabilities)
    _check(opset, dtype, batch, options)
    on_step("loading the network")
    if isinstance(source, nn.Module):
        opened = ExportSource.of_network(source)
    else:
        model = load_model(source, checkpoint, class_names=class_names, ema=ema, raw=raw)
        opened = ExportSource.of_model(model)
    program = None if runner is None else as_path(runner, "runner", OutputError) / RUNNER
    repository = None if triton is None else as_path(triton, "triton", OutputError)
    if program is not None:
        _check_runner(target, opened, program)
    if repository is not None:
        check_repository(target, repository)
    draft = draw_up(
        opened, options, batch=batch, image_size=image_size, opset=opset, dtype=dtype, on_step=on_step
    )
    with draft_folder() as folder:
        file = folder / f"network{target.suffix.lower()}"
        card = write_compared(draft, file, on_step)
        keep(file, target, card)
    if program is not None:
        with atomic_bytes(program) as stream:
            stream.write(Path(__file__).with_name("runner.py").read_bytes())
    if repository is not None:
        write_repository(target, card, repository)
    return Exported(target, card)


@contextmanager
def draft_folder() -> Iterator[Path]:
    """A folder for files that are not kept yet.

    Raises:
        OutputError: its disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="metaformer-export-") as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if isinstance(error, MetaFormerError):
                raise
            where, reason = error.filename or folder, error.strerror or error
            raise OutputError(
                f"{where}: cannot write ({reason}): TMPDIR names another folder for temporary files"
            ) from error


def draw_up(
    source: ExportSource,
    options: ExportOptions,
    *,
    batch: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    dtype: str = "fp32",
    on_step: Step = lambda step: None,
) -> Draft:
    """Trace a network's graph; arguments and errors are those of `export`."""
    _check_task(source, options)
    source, size = sized(source.limited(options), image_size)
    card = make_card(source, batch, size, dtype, options)
    network = source.network if dtype == "fp32" else copy.deepcopy(source.network).to(DTYPES[dtype])
    graph = source.task.graph(network, source.preprocess, options).eval()
    card = replace(card, outputs=graph.outputs, versions={**card.versions, "opset": opset})
    on_step("tracing its graph")
    body = to_bytes(trace(graph, card.channels, batch, size, max(source.side, card.min_size + 1), opset))
    return Draft(source, graph, body, card)


def write_compared(draft: Draft, file: Path, on_step: Step) -> ExportCard:
    """Write a draft and compare the file with the network; returns the card as written.

    Raises:
        OptimizeError: the file does not compute what the network does.
    """
    write = WRITERS[file.suffix]
    card = write(file, draft.body, draft.card)
    on_step("comparing the file with the network")
    card = replace(card, parity=compare(draft.source, file, card))
    return write(file, draft.body, card)


def check_target(path: Path) -> None:
    """Check that a file can be written, before anything takes long.

    Raises:
        ConfigError: another suffix.
        MissingPackage: a package that its format needs is not installed.
        OutputError: `path` cannot be written.
    """
    if path.suffix.lower() not in RUNTIMES:
        raise ConfigError(f"{path}: an exported file's name ends in {', '.join(RUNTIMES)} or .pt2")
    load_onnxscript()
    load_openvino() if path.suffix.lower() == ".xml" else load_onnxruntime()
    for file in _files(path):
        check_replaceable(file)
    check_writable(path)


def _check_runner(path: Path, source: ExportSource, program: Path) -> None:
    if source.task_name is None:
        raise ConfigError(f"runner: {RUNNER} predicts with networks of a task, {source.name} has no head")
    if path.suffix.lower() != ".onnx":
        raise ConfigError(f"runner: {RUNNER} computes .onnx files, {path} is none")
    check_writable(program)


def _files(path: Path) -> list[Path]:
    """All that belongs to an exported file, itself last."""
    return [*exported_files(path)[1:], path.with_suffix(".json"), path]


def _check(opset: int, dtype: str, batch: int | None, options: ExportOptions) -> None:
    if opset not in OPSETS:
        raise ConfigError(f"opset is {opset}: choose {OPSETS[0]} to {OPSETS[-1]}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}: choose {' or '.join(DTYPES)}")
    if options.input not in INPUTS:
        raise ConfigError(f"input is {options.input!r}: choose {' or '.join(INPUTS)}")
    for name, value in (("batch", batch), ("max_objects", options.max_objects)):
        if value is not None and value not in POSITIVE_INT:
            raise ConfigError(f"{name} is {value}: it must be at least 1")


def _check_task(source: ExportSource, options: ExportOptions) -> None:
    for name in ("max_objects", "probabilities"):
        if getattr(options, name) and name not in source.task.options:
            kind = TASKS[source.task_name].title if source.task_name else "a backbone"
            raise ConfigError(f"{name}: no option of {kind} ({source.name})")


def make_card(
    source: ExportSource, batch: int | None, size: tuple[int, int] | None, dtype: str, options: ExportOptions
) -> ExportCard:
    """What the file will say of itself, but for its outputs and content.

    Raises:
        ConfigError: pixels in RGB are no input of the network.
    """
    trunk = trunk_of(source.network)
    if options.input == "uint8" and trunk.config.in_chans != 3:
        count = trunk.config.in_chans
        raise ConfigError(f"input is uint8: {source.name} takes {count} channels: choose float")
    cfg: dict[str, Any] = getattr(source.network, "pretrained_cfg", {})
    return ExportCard(
        schema=SCHEMA,
        task=source.task_name,
        name=source.name,
        classes=source.classes,
        num_classes=source.num_classes,
        preprocess=source.preprocess.to_dict(),
        resize=source.task.resize(source.preprocess),
        input=options.input,
        channels=trunk.config.in_chans,
        batch=batch,
        image_size=size,
        min_size=trunk.min_size,
        outputs=(),
        dtype=str(DTYPES[dtype]).removeprefix("torch."),
        license=(cfg.get("license") or None) if cfg.get("url") else None,
        metadata=source.task.metadata(source.metadata),
        weights_sha256=state_sha256(source.network.state_dict()),
        versions={name: _version(name) for name in ("metaformer", "torch", "onnx")},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def write_onnx(path: Path, body: bytes, card: ExportCard) -> ExportCard:
    """Write an ONNX file: the model, then its metadata, which parsers join; returns the card as written."""
    onnx, _ = load_onnxscript()
    card = replace(card, content=Content.of(body))
    tail = onnx.ModelProto()
    for key, value in {KEY: _json(card), **flat(card), **model_info(card, "model_info ")}.items():
        tail.metadata_props.add(key=key, value=value)
    path.write_bytes(body + tail.SerializeToString())
    return card


def write_openvino(path: Path, body: bytes, card: ExportCard) -> ExportCard:
    """Write OpenVINO's two files; returns the card as written."""
    return save_openvino(path, load_openvino().Core().read_model(body), card)


def save_openvino(path: Path, graph: Any, card: ExportCard) -> ExportCard:
    """The same of an `openvino.Model`."""
    openvino = load_openvino()

    def save(card: ExportCard) -> None:
        graph.set_rt_info(_json(card), KEY)
        for key, value in flat(card).items():
            graph.set_rt_info(value, key)
        for key, value in model_info(card).items():
            graph.set_rt_info(value, ["model_info", key])
        try:
            openvino.save_model(graph, path, compress_to_fp16=card.dtype == "float16")
        except RuntimeError as error:  # a failed stream, without the system's reason
            raise OSError(f"OpenVINO: {error}") from error

    save(card)
    content = Content.of(path.with_suffix(".bin").read_bytes())
    card = replace(card, content=content, versions={**card.versions, "openvino": _version("openvino")})
    save(card)
    return card


WRITERS: Final = {".onnx": write_onnx, ".xml": write_openvino}


def _json(card: ExportCard) -> str:
    return json.dumps(card.to_dict(), ensure_ascii=False)


def keep(written: Path, target: Path, card: ExportCard) -> None:
    """Move a written file and its JSON file to their place, the file itself last."""
    names = [file.name for file in exported_files(target)]
    hashes = dict(zip(names, file_hashes(written).values(), strict=True))
    beside = json.dumps({**card.to_dict(), FILES: hashes}, ensure_ascii=False, indent=1) + "\n"
    written.with_suffix(".json").write_text(beside, encoding="utf-8")
    # all are written before the first takes its place; the file itself is the last
    with ExitStack() as stack:
        for file in reversed(_files(target)):
            temporary = stack.enter_context(atomic_path(file))
            shutil.copyfile(written.with_suffix(file.suffix.lower()), temporary)
