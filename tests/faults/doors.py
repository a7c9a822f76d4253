"""Every way by which files enter the library: a new one is a row of `DOORS`."""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from faults import mutate
from metaformer.backbones.config import MetaFormerConfig
from metaformer.checkpoint.checkpoint import read_checkpoint, write_checkpoint
from metaformer.checkpoint.manifest import MANIFEST, _digest, _manifest_text
from metaformer.config import DataConfig, TrainConfig
from metaformer.models.build import build_network
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.serialize import to_dict
from toys import gray_png

BACKBONE = MetaFormerConfig(
    depths=(1, 1, 1, 1),
    dims=(8, 8, 8, 8),
    mlp_ratios=(1, 1, 1, 1),
    mixers=("pooling", "pooling", "attention(head_dim=4)", "spatial_fc"),
    pos_embed=(False, True, False, False),
    image_size=(64, 64),
    num_classes=3,
)
CLASSES = ["ant", "bee", "cat"]


@dataclass(frozen=True)
class Door:
    """Files that are read together, one of which is changed."""

    name: str
    """What is changed."""
    write: Callable[[Path], Path]
    """Writes valid files into a folder; returns the one that is changed."""
    enter: Callable[[Path], object]
    """Reads the files in that folder as users do."""
    mutate: mutate.Mutate
    changed: Callable[[Path], object] = lambda folder: None
    """Called after a change, such as to write a manifest anew."""


@cache
def _weights(task: str) -> Any:
    torch.manual_seed(0)
    return build_network(_config(task))


def _config(task: str) -> Any:
    if task == "segment":
        return SegmenterConfig(backbone=BACKBONE, num_classes=3, fpn_dim=8, head_dim=8)
    if task == "detect":
        return DetectorConfig(backbone=BACKBONE, num_classes=3, fpn_dim=8, head_dim=8, kind="retinanet")
    return BACKBONE


def _card(task: str) -> dict[str, Any]:
    dense = {"long_side": 64, "short_side": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "background": [0, 0, 0]}
    return {
        "task": task,
        "name": "poolformer_n",
        "model": _config(task).to_dict(),
        "classes": CLASSES,
        "preprocess": dense if task in ("segment", "detect") else {"image_size": 64, "crop": 0.9},
        "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0]],
        "category_ids": [1, 2, 3],
        "thresholds": [0.5, 0.5, 0.25],
    }


def _state(task: str) -> dict[str, Any]:
    return {
        "card": _card(task),
        "config": to_dict(TrainConfig()),
        "step": 4,
        "total": 8,
        "epoch": 1,
        "metric": "top1",
        "metrics": {"top1": 0.5, "loss": 1.0},
        "best": {"value": 0.5, "step": 4},
        "bad_images": [],
        "skipped_steps": 0,
        "evaluation_pending": False,
        "world_size": 1,
        "threads": 1,
    }


def _checkpoint(task: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_checkpoint(folder / "it", {"model": _weights(task).state_dict()}, _state(task))
        return folder / "it" / "state.json"

    return write


def _seal(folder: Path) -> None:
    """Write a checkpoint's manifest anew, so that what it lists is read."""
    directory = folder / "it"
    names = [file for file in sorted(directory.iterdir()) if file.name != MANIFEST and file.is_file()]
    sizes = {file.name: file.stat().st_size for file in names}
    if max(sizes.values(), default=0) < 1 << 30:
        files = {file.name: (sizes[file.name], _digest(file)) for file in names}
        (directory / MANIFEST).write_text(_manifest_text(files))


def _load(folder: Path) -> object:
    from metaformer.inference.model import load_model

    model = load_model(folder / "it")
    return model.class_names, model.metadata


def _manifest(folder: Path) -> Path:
    _checkpoint("classify")(folder)
    return folder / "it" / MANIFEST


def _optimizer(network: torch.nn.Module) -> torch.optim.Optimizer:
    group = {"params": list(network.parameters()), "names": [name for name, _ in network.named_parameters()]}
    return torch.optim.AdamW([group])


def _resumed(folder: Path) -> Path:
    from metaformer.checkpoint.checkpoint import pack_optimizer

    network = _weights("classify")
    optimizer = _optimizer(network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors, plain = pack_optimizer(optimizer)
    state = {**_state("classify"), "optimizer": plain}
    write_checkpoint(folder / "it", {"model": network.state_dict(), "optimizer": tensors}, state)
    return folder / "it" / "state.json"


def _pretrained(folder: Path, card: dict[str, Any]) -> Path:
    from metaformer.weights.io import write_state

    write_state(folder / "it" / "model.safetensors", _weights(card.get("task", "classify")).state_dict())
    (folder / "it" / "config.json").write_bytes(mutate.dump(card))
    return folder / "it" / "config.json"


def _hub(task: str) -> Callable[[Path], Path]:
    card = _card(task)
    cfg = {
        "architecture": "poolformer_n",
        "label_names": CLASSES,
        "num_classes": 3,
        "input_size": [3, 64, 64],
        "crop_pct": 0.9,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "background": [0, 128, 255],
        "interpolation": "bicubic",
        **{name: card[name] for name in ("preprocess", "palette", "category_ids", "thresholds")},
    }
    whole = {
        "library_name": "metaformer",
        "version": "0.1.0",
        "task": task,
        "architecture": "poolformer_n",
        "config": card["model"],
        "pretrained_cfg": cfg,
        "out_indices": None,
    }
    return lambda folder: _pretrained(folder, whole if task != "classify" else {**whole, "task": "classify"})


def _transformers(folder: Path) -> Path:
    from metaformer.weights.card import read_config
    from metaformer.weights.io import write_state

    card = {
        "model_type": "poolformer",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 8, 8, 8],
        "patch_sizes": [7, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "padding": [2, 1, 1, 1],
        "mlp_ratio": 1.0,
        "pool_size": 3,
        "hidden_act": "gelu",
        "use_layer_scale": True,
        "layer_scale_init_value": 1e-5,
        "num_channels": 3,
        "id2label": {"0": "ant", "1": "bee"},
    }
    write_state(folder / "it" / "model.safetensors", build_network(read_config(card)).state_dict())
    (folder / "it" / "config.json").write_text(json.dumps(card))
    return folder / "it" / "config.json"


def _timm(folder: Path) -> Path:
    from metaformer.weights.io import write_state

    write_state(folder / "it" / "model.safetensors", _poolformer_n().state_dict())
    card = {"architecture": "poolformer_n", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (folder / "it" / "config.json").write_text(json.dumps(card))
    return folder / "it" / "config.json"


@cache
def _poolformer_n() -> Any:
    from metaformer.factory import create_model

    return create_model("poolformer_n", num_classes=3)


def _safetensors(folder: Path) -> Path:
    from metaformer.weights.io import write_state

    write_state(folder / "it.safetensors", _weights("classify").state_dict(), {"architecture": "x"})
    return folder / "it.safetensors"


def _torch_file(old: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tensors = {name: value.clone() for name, value in _weights("classify").state_dict().items()}
        torch.save(
            {"state_dict": tensors, "epoch": 3}, folder / "it.pth", _use_new_zipfile_serialization=not old
        )
        return folder / "it.pth"

    return write


def _plain_weights(folder: Path) -> Path:
    from metaformer.weights.io import write_state

    plain = replace(BACKBONE, mixers=("pooling",) * 4, pos_embed=(False,) * 4)
    write_state(folder / "it.safetensors", build_network(plain).state_dict())
    return folder / "it.safetensors"


def _load_weights(folder: Path) -> object:
    import copy

    from metaformer.weights.load import load_weights

    (file,) = folder.glob("it.*")
    return load_weights(copy.deepcopy(_weights("classify")), file, strict=False)


def _convert(folder: Path) -> object:
    from metaformer.weights.convert import convert

    (file,) = folder.glob("it.*")
    return convert(file, folder / "out.safetensors", "timm")


def _yaml(folder: Path) -> Path:
    text = (
        "seed: 3\nmodel:\n  name: poolformer_n\n  mixers: [pooling, pooling, identity, identity]\n"
        "  overrides: {depths: [1, 1, 1, 1], norm_eps: 1.0e-5}\n  num_classes: null\n  pretrained: false\n"
        "data: {root: data, image_size: 64, batch_size: 8, mean: [0.5, 0.5, 0.5]}\n"
        "optim:\n  lr: 0.001\n  betas: [0.9, 0.99]\nschedule: {milestones: [8, 11], epochs: 3}\n"
        "runtime: {threads: 1, device: cpu}\n"
    )
    (folder / "it.yaml").write_text(text)
    return folder / "it.yaml"


def _config_json(folder: Path) -> Path:
    (folder / "it.yaml").write_text(json.dumps(to_dict(TrainConfig(data=DataConfig(root="x")))))
    return folder / "it.yaml"


def _resolve(folder: Path) -> object:
    from metaformer.models.build import check_memory
    from metaformer.tasks.classification.task import preprocessing
    from metaformer.tasks.dense import backbone_config
    from metaformer.training.check import check_config

    config = _resolved([str(folder / "it.yaml")])
    check_config(config)
    preprocessing(config)
    network = backbone_config(config.model)
    return check_memory(lambda: build_network(network))


def _resolved(words: list[str]) -> TrainConfig:
    from metaformer.cli.parser import UsageError
    from metaformer.cli.train import resolve
    from metaformer.errors import ConfigError
    from metaformer.recipes import find

    try:
        return resolve(find("demo/classify"), words)
    except UsageError as error:  # the command line's own, of one line
        raise ConfigError(str(error)) from error


def _options(folder: Path) -> Path:
    options = {
        "model.name": "poolformer_n",
        "model.overrides": "{depths: [1, 1, 1, 1]}",
        "data.root": "x",
        "data.image_size": "64",
        "data.mean": "[0.5, 0.5, 0.5]",
        "optim.lr": "1e-3",
        "optim.betas": "[0.9, 0.99]",
        "schedule.milestones": "[1, 2]",
        "model.num_classes": "null",
        "seed": "1",
    }
    (folder / "it.json").write_text(json.dumps(options))
    return folder / "it.json"


def _resolve_options(folder: Path) -> object:
    from metaformer.errors import ConfigError
    from metaformer.storage import read_json
    from metaformer.training.check import check_config

    options = read_json(folder / "it.json", ConfigError)
    words = [f"--{name}={value}" for name, value in options.items()] if isinstance(options, dict) else []
    words = [
        word.replace("\0", "").encode(errors="replace").decode() for word in words
    ]  # as a shell passes them
    return check_config(_resolved(words))


def _package(folder: Path) -> Path:
    from metaformer.deploy.packaging.load import FORMAT, KEY, machine_metadata

    inputs = {"batch": [1, 4], "channels": 3, "height": [64, 64], "width": [64, 64], "dtype": "float32"}
    metadata = {
        "format": FORMAT,
        "name": "net",
        "inputs": {**inputs, "device": "cpu"},
        "outputs": ["output"],
        "metaformer": "0.1.0",
        "torch": "2.0",
        **machine_metadata(),
    }
    with zipfile.ZipFile(folder / "it.pt2", "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/x_metadata.json", json.dumps({KEY: json.dumps(metadata)}))
    return folder / "it.pt2"


def _read_package(folder: Path) -> object:
    from metaformer.deploy.packaging.load import Packaged, _check_machine, read_metadata

    metadata = read_metadata(folder / "it.pt2")
    _check_machine(folder / "it.pt2", metadata)
    return str(Packaged(metadata, lambda images: [images]).limits)


def _openvino(folder: Path) -> Path:
    import openvino
    from openvino import opset13 as op

    from metaformer.data.preprocess import Preprocess
    from metaformer.deploy.export.write import save_openvino
    from metaformer.tasks.exported import SCHEMA, ExportCard

    images = op.parameter([-1, 8, 8, 3], np.uint8, name="images")
    flat = op.convert(op.reshape(images, np.array([0, 192]), True), np.float32)
    product = op.matmul(flat, np.ones((192, 3), np.float32), False, False)
    graph = openvino.Model([op.softmax(product, 1)], [images])
    graph.output().set_names({"probabilities"})
    card = ExportCard(
        schema=SCHEMA,
        task="classify",
        name="net",
        classes=("ant", "bee", "cat"),
        num_classes=3,
        preprocess=Preprocess(8).to_dict(),
        resize={},
        input="uint8",
        channels=3,
        batch=None,
        image_size=(8, 8),
        min_size=8,
        outputs=("probabilities",),
        dtype="int8",
    )
    save_openvino(folder / "it.xml", graph, card)
    return folder / "it.xml"


def _read_openvino(folder: Path) -> object:
    from metaformer.inference.exported import load_exported

    model = load_exported(folder / "it.xml")
    return model.name, model.num_classes, model.preprocess


def _names(folder: Path) -> Path:
    (folder / "it.txt").write_text("ant\nbee\ncat dog\n")
    return folder / "it.txt"


def _read_names(folder: Path) -> object:
    from metaformer.data.class_lists import given_names

    return given_names(folder / "it.txt")


def _image(file: Path, size: tuple[int, int] = (32, 24)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(file)


def _coco(folder: Path) -> Path:
    _image(folder / "train2017" / "a.png")
    _image(folder / "train2017" / "b.png")
    runs = {"size": [24, 32], "counts": [10, 5, 753]}
    shape = [[2.0, 2.0, 10.0, 2.0, 10.0, 9.0]]
    document = {
        "info": {"year": 2026},
        "images": [
            {"id": 1, "file_name": "a.png", "width": 32, "height": 24},
            {"id": 2, "file_name": "b.png", "width": 32, "height": 24},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 7], "area": 28.0, "iscrowd": 0}
            | {"segmentation": shape},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [2, 2, 8, 7], "area": 5, "iscrowd": 1}
            | {"segmentation": runs},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [2, 2, 8, 7.5]},
        ],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
    }
    file = folder / "annotations" / "instances_train2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(document))
    return file


def _open_objects(folder: Path) -> object:
    from metaformer.tasks.detection.dataset import open_detection

    data = open_detection(folder, "train")
    return [data.objects.of(index) for index in range(len(data))], data.classes


def _check_objects(folder: Path) -> object:
    from metaformer.tasks.detection.check import check_objects

    return check_objects(folder, ["train"], workers=1, progress=False).text()


def _voc(folder: Path) -> Path:
    for name in ("a", "b"):
        _image(folder / "JPEGImages" / f"{name}.png")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>32</width><height>24</height>"
            "<depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin>"
            "<ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
        )
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb 1\n")
    return folder / "Annotations" / "a.xml"


def _voc_list(folder: Path) -> Path:
    _voc(folder)
    return folder / "ImageSets" / "Main" / "train.txt"


def _open_voc(folder: Path) -> object:
    from metaformer.tasks.detection.dataset import open_detection

    return open_detection(folder, "train", "voc").classes


def _yolo(folder: Path) -> Path:
    for name in ("a", "b"):
        _image(folder / "images" / "train" / f"{name}.png")
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.4 0.1 0.4 0.4\n")
    (folder / "data.yaml").write_text("names: {0: ant, 1: bee}\nnc: 2\ntrain: images/train\n")
    return labels / "a.txt"


def _yolo_names(folder: Path) -> Path:
    _yolo(folder)
    return folder / "data.yaml"


def _open_yolo(folder: Path) -> object:
    from metaformer.tasks.detection.dataset import open_detection

    return open_detection(folder, "train", "yolo").classes


def _segmentation(folder: Path) -> Path:
    for name in ("a", "b"):
        _image(folder / "JPEGImages" / f"{name}.jpg")
        labels = folder / "SegmentationClass" / f"{name}.png"
        labels.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((24, 32), 3, np.uint8)).save(labels)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    return lists / "train.txt"


def _label_map(folder: Path) -> Path:
    _segmentation(folder)
    return folder / "SegmentationClass" / "a.png"


def _open_segmentation(folder: Path) -> object:
    from metaformer.tasks.segmentation.dataset import open_segmentation

    data = open_segmentation(folder, "train", "voc")
    return [data.pair(index)[1].sum() for index in range(len(data))]


def _csv(folder: Path) -> Path:
    _tagged(folder)
    (folder / "train.csv").write_text("image,ant,bee\na.png,1,0\nb.png,0,1\n")
    return folder / "train.csv"


def _csv_list(folder: Path) -> Path:
    _tagged(folder)
    (folder / "train.csv").write_text("image,labels\na.png,ant bee\nb.png,bee\n")
    return folder / "train.csv"


def _jsonl(folder: Path) -> Path:
    _tagged(folder)
    lines = ({"image": "a.png", "labels": ["ant", "bee"]}, {"image": "b.png", "labels": []})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "train.jsonl"


def _tagged(folder: Path) -> None:
    for name in ("a", "b"):
        _image(folder / f"{name}.png")


def _open_tags(folder: Path) -> object:
    from metaformer.tasks.multilabel.dataset import open_multilabel

    return open_multilabel(folder, "train").labels.sum()


def _lines(draw: Any, data: bytes) -> bytes:
    """JSON lines, one of them changed as JSON."""
    lines = data.splitlines()
    if draw.random() < 0.3 or not lines:
        return mutate.words(draw, data)
    place = draw.randrange(len(lines))
    lines[place] = mutate.json_bytes(draw, lines[place])
    return b"\n".join(lines) + b"\n"


def _shards(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from metaformer.data.shards.write import write_shards

        source = folder / "source"
        for name in CLASSES:
            _image(source / "train" / name / "a.png")
        write_shards(source, folder / "shards", ("train",), kind, workers=1, progress=False)
        shutil.rmtree(source)
        return folder / "shards" / "shards.json"

    return write


def _contents(folder: Path) -> Path:
    _shards("tar")(folder)
    return next((folder / "shards").rglob("*.contents.json"))


def _indexed_tar(folder: Path) -> Path:
    _shards("tar")(folder)
    return next((folder / "shards").rglob("*.tar"))


def _plain_tar(folder: Path) -> Path:
    file = folder / "shards" / "train-0.tar"
    file.parent.mkdir()
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(4):
            members = {"png": gray_png(number), "cls": b"%d" % (number % 2), "json": b'{"path": "a.png"}'}
            for kind, content in members.items():
                entry = tarfile.TarInfo(f"{number:03d}.{kind}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file


def _parquet(folder: Path) -> Path:
    _shards("parquet")(folder)
    (folder / "shards" / "shards.json").unlink()
    return next((folder / "shards").rglob("*.parquet"))


def _open_shards(folder: Path) -> object:
    from metaformer.data.shards.tar import TarImages
    from metaformer.data.split import open_split

    data = open_split(folder / "shards", "train")
    read = [data.image(index).size for index in range(min(len(data), 8))]
    if isinstance(data, TarImages):
        read += [image.index for file in range(len(data.shards.files)) for image in data.stream(file)]
    return list(data.labels), [str(data.path(index)) for index in range(min(len(data), 8))], read


def _picture(folder: Path) -> Path:
    (folder / "it.png").write_bytes(gray_png(7))
    return folder / "it.png"


def _read_picture(folder: Path) -> object:
    from metaformer.data.image import image_size, read_image

    return image_size(folder / "it.png"), read_image(folder / "it.png").size


def _run_file(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        run = folder / "it"
        write_checkpoint(
            run / "checkpoints" / "step_4", {"model": _weights("classify").state_dict()}, _state("classify")
        )
        (run / "config.json").write_text(json.dumps(to_dict(TrainConfig())))
        lines = (
            {"kind": "train", "step": 2, "epoch": 0, "loss": 1.0, "lr": 0.1, "images_per_second": 3.0},
            {"kind": "eval", "step": 4, "epoch": 1, "top1": 0.5, "loss": 2.0},
            {"kind": "resume", "step": 4, "epoch": 1},
        )
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "command.txt").write_text("metaformer train\n")
        return run / name

    return write


def _read_run(folder: Path) -> object:
    from metaformer.checkpoint.run_dir import read_log
    from metaformer.checkpoint.runs import find_runs
    from metaformer.report.page import charts

    runs = find_runs(folder)
    log = read_log(folder / "it")
    return [json.dumps(run.to_dict()) for run in runs], charts(log, "top1", "top-1", "epoch")


def _job(folder: Path) -> Path:
    (folder / "job.json").write_text(
        json.dumps({"data": "x", "images": 3, "model": "a", "preprocess": {"a": 1}})
    )
    return folder / "job.json"


def _claim(folder: Path) -> object:
    from metaformer.inference.batch import _claim

    return _claim(folder, "x", {"images": 3, "model": "a", "preprocess": {"a": 1}})


def _real(folder: Path) -> Path:
    (folder / "it.json").write_text(json.dumps([[0], [1, 2], []]))
    return folder / "it.json"


def _read_real(folder: Path) -> object:
    from metaformer.tasks.classification.metrics import read_real_labels

    return read_real_labels(folder / "it.json", ["a", "b", "c"], 3)


def _restore(folder: Path) -> object:
    from metaformer.checkpoint.checkpoint import restore_optimizer, restoring

    optimizer = _optimizer(_weights("classify"))
    saved = read_checkpoint(folder / "it")
    with restoring(saved):
        return restore_optimizer(optimizer, saved)


PLAN = """question: Does pooling help?
data: {root: data, train: train, val: val, test: test, group: null}
recipe: demo/classify
overrides:
  data: {image_size: 64, batch_size: 8, workers: 0}
skeleton: {model: poolformer_n, overrides: {dims: [8, 8, 16, 16], stem_stride: 4}}
mixers:
  pooling: pooling(size=3)
  none: [identity, identity, pooling, identity]
baseline: none
budget: {match: parameters, tolerance: 0.02}
learning_rates: [0.001, 0.002, 0.004, 0.008, 0.016]
sweep_seeds: [100]
seeds: [0, 1, 2, 3, 4]
purpose: exploratory
smallest_effect: 0.5
epochs: 3
controls: [repeat, external]
hypotheses: {pooling: better}
robustness: [shift]
receptive_field: true
diagnostics: [pointer]
transfer: {epochs: 2, learning_rate: 0.001}
"""


def _study(name: str) -> Callable[[Path], Path]:
    """A study of one run, and which of its files is changed."""

    def write(folder: Path) -> Path:
        from metaformer.study.plan import parse_plan
        from metaformer.study.results import (
            Arm,
            FieldSize,
            PerturbedAccuracy,
            Robustness,
            RunResult,
            Square,
        )
        from metaformer.study.study_dir import write_arrays

        run = "final-none-seed0"
        arms = [
            Arm(name=name, mixers=("identity",) * 4, parameters=5, changed=("x",))
            for name in ("none", "pooling")
        ]
        square = Square(share=0.5, side=3, ratio=0.1)
        shifted = PerturbedAccuracy(kind="shift", name="shift", level=1, accuracy=50)
        records = {
            f"results/{run}": RunResult(
                name=run, arm="none", role="final", learning_rate=1e-3, seed=0, validation=50, test=50
            ),
            f"robustness/{run}": Robustness(run=run, arm="none", seed=0, accuracies=(shifted,)),
            f"receptive_fields/{run}": FieldSize(run=run, arm="none", seed=0, squares=(square,)),
        }
        head = {
            "schema": 1, "plan_sha256": parse_plan(PLAN, "plan").sha256, "created": "2026-12-01",
            "machine": {"device": "cpu", "threads": 1}, "versions": {"torch": "2"},
            "arms": [to_dict(arm) for arm in arms],
        }  # fmt: skip
        test = {"images": ["a.png", "b.png"], "labels": [0, 1], "clusters": [0, 1], "class_names": ["a", "b"]}
        texts = {"plan.yaml": PLAN, "study.json": json.dumps(head), "test.json": json.dumps(test)}
        texts |= {f"{key}.json": json.dumps(to_dict(record)) for key, record in records.items()}
        for key, text in texts.items():
            (folder / key).parent.mkdir(exist_ok=True)
            (folder / key).write_text(text)
        arrays = {"predicted": np.array([0, 1], np.int32), "probability": np.array([0.5, 1], np.float32)}
        write_arrays(folder / "predictions" / f"{run}.safetensors", **arrays)
        write_arrays(folder / "receptive_fields" / f"{run}.safetensors", scores=np.ones((3, 3), np.float32))
        return folder / name.format(run=run)

    return write


def _read_study(folder: Path) -> object:
    from metaformer.study.study_dir import read_study

    study = read_study(folder)
    return study, study.predictions("final-none-seed0"), study.receptive_field("final-none-seed0")


def _read_plan(folder: Path) -> object:
    from metaformer.study.plan import read_plan

    return read_plan(folder / "plan.yaml").sha256


DOORS = {
    door.name: door
    for door in (
        *(
            Door(f"checkpoint card ({task})", _checkpoint(task), _load, mutate.json_bytes, _seal)
            for task in ("classify", "multilabel", "segment", "detect")
        ),
        Door("checkpoint manifest", _manifest, _load, mutate.json_bytes),
        *(
            Door(f"config.json of ours ({task})", _hub(task), _load, mutate.json_bytes)
            for task in ("classify", "multilabel", "segment", "detect")
        ),
        Door("config.json of transformers", _transformers, _load, mutate.json_bytes),
        Door("config.json of timm", _timm, _load, mutate.json_bytes),
        Door("safetensors", _safetensors, _load_weights, mutate.safetensors),
        Door("file of torch.save", _torch_file(False), _load_weights, mutate.archive),
        Door("file of torch.save, older form", _torch_file(True), _load_weights, mutate.any_bytes),
        Door("conversion", _plain_weights, _convert, mutate.safetensors),
        Door("YAML configuration", _yaml, _resolve, mutate.words),
        Door("JSON configuration", _config_json, _resolve, mutate.json_bytes),
        Door("options of a recipe", _options, _resolve_options, mutate.json_bytes),
        Door("package", _package, _read_package, mutate.archive),
        Door("int8 file", _openvino, _read_openvino, mutate.words),
        Door("class names", _names, _read_names, mutate.words),
        Door("COCO file", _coco, _open_objects, mutate.json_bytes),
        Door("data check of a COCO file", _coco, _check_objects, mutate.json_bytes),
        Door("VOC file", _voc, _open_voc, mutate.words),
        Door("VOC list", _voc_list, _open_voc, mutate.words),
        Door("YOLO file", _yolo, _open_yolo, mutate.words),
        Door("YOLO data.yaml", _yolo_names, _open_yolo, mutate.words),
        Door("segmentation list", _segmentation, _open_segmentation, mutate.words),
        Door("label map", _label_map, _open_segmentation, mutate.any_bytes),
        Door("CSV of classes", _csv, _open_tags, mutate.words),
        Door("CSV of labels", _csv_list, _open_tags, mutate.words),
        Door("JSON lines of labels", _jsonl, _open_tags, _lines),
        Door("index of tar shards", _shards("tar"), _open_shards, mutate.json_bytes),
        Door("index of parquet shards", _shards("parquet"), _open_shards, mutate.json_bytes),
        Door("contents of a shard", _contents, _open_shards, mutate.json_bytes),
        Door("indexed tar shard", _indexed_tar, _open_shards, mutate.tar),
        Door("tar shard", _plain_tar, _open_shards, mutate.tar),
        Door("parquet shard", _parquet, _open_shards, mutate.any_bytes),
        Door("image", _picture, _read_picture, mutate.any_bytes),
        Door("run's configuration", _run_file("config.json"), _read_run, mutate.json_bytes),
        Door("run's log", _run_file("metrics.jsonl"), _read_run, _lines),
        Door("run's command", _run_file("command.txt"), _read_run, mutate.words),
        Door("plan of a study", _study("plan.yaml"), _read_plan, mutate.words),
        Door("study.json", _study("study.json"), _read_study, mutate.json_bytes),
        Door("test images of a study", _study("test.json"), _read_study, mutate.json_bytes),
        Door("result of a study", _study("results/{run}.json"), _read_study, mutate.json_bytes),
        Door("robustness of a study", _study("robustness/{run}.json"), _read_study, mutate.json_bytes),
        Door("field sizes of a study", _study("receptive_fields/{run}.json"), _read_study, mutate.json_bytes),
        Door(
            "predictions of a study", _study("predictions/{run}.safetensors"), _read_study, mutate.safetensors
        ),
        Door(
            "field of a study", _study("receptive_fields/{run}.safetensors"), _read_study, mutate.safetensors
        ),
        Door("prediction job", _job, _claim, mutate.json_bytes),
        Door("ReaL labels", _real, _read_real, mutate.json_bytes),
        Door("optimizer of a checkpoint", _resumed, _restore, mutate.json_bytes, _seal),
    )
}
