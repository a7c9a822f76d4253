"""Small data sets, configurations and runs of every task: functions that write them, and fixtures.

What a fixture of the session gives is shared by all tests, and must not be changed; the rest is a test's own.
"""

import io
import json
import os
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from metaformer.checkpoint.checkpoint import write_checkpoint
from metaformer.checkpoint.run_dir import read_log
from metaformer.cli import COMMANDS
from metaformer.cli.parser import Parser
from metaformer.config import TrainConfig
from metaformer.data.folder import ImageFolder
from metaformer.data.rle import encode
from metaformer.data.shards.write import write_shards
from metaformer.distributed import World
from metaformer.errors import DataError
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.retinanet import RetinaNet
from metaformer.recipes import RECIPES
from metaformer.serialize import from_dict, to_dict
from metaformer.tasks import TASKS
from metaformer.tasks.base import Task
from metaformer.tasks.check import CheckReport, Finding
from metaformer.tasks.demo import write_demo_data
from metaformer.tasks.detection.check import check_objects
from metaformer.tasks.detection.dataset import DetectionFolder, open_detection
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.training.train import train

CLASSES = ("ant", "bee", "cat")
TINY = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}

Pixels = NDArray[np.uint8]
Pair = tuple[Pixels, Pixels]
"""An image (H, W, 3) and its label map (H, W)."""
Configure = Callable[..., TrainConfig]
Digest = Callable[[Path], dict[str, Any]]
Write = Callable[[str, object], Path]
ErrorsOf = Callable[..., tuple[str, tuple[Finding, ...]]]


# Files


def save_image(path: Path, pixels: Pixels) -> Path:
    """Write an image (H, W, 3) or label map (H, W), and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_image_folder(
    root: Path,
    counts: Mapping[str, int],
    size: Callable[[int], tuple[int, int]] = lambda i: (36 + i, 40),
    noise: int = 120,
    color: Callable[[int], int] = lambda i: 130,
    seed: int = 0,
) -> Path:
    """An image folder whose classes differ in the channel that is brighter.

    Args:
        root: the data set.
        counts: images per class of each split.
        size: height and width of the i-th image of a class.
        noise: values of all channels are below.
        color: what is added to the class's channel of the i-th image.
        seed: seed of the noise.
    """
    random = np.random.RandomState(seed)
    for split, count in counts.items():
        for channel, name in enumerate(CLASSES):
            for i in range(count):
                pixels = random.randint(0, noise, (*size(i), 3), dtype=np.uint8)
                pixels[..., channel] += color(i)
                save_image(root / split / name / f"{i}.png", pixels)
    return root


def square_pair(
    i: int,
    random: np.random.RandomState,
    size: tuple[int, int],
    noise: int,
    square: tuple[int, int],
    color: int,
) -> Pair:
    """An image with a green (odd i: blue) square somewhere, labels 1 and 2, on noise, label 0."""
    pixels = random.randint(0, noise, (*size, 3), dtype=np.uint8)
    labels = np.zeros(size, dtype=np.uint8)
    top, left = random.randint(0, 16, 2)
    labels[top : top + square[0], left : left + square[1]] = 1 + i % 2
    pixels[..., 1 + i % 2] += ((labels > 0) * color).astype(np.uint8)
    return pixels, labels


def write_ade20k(root: Path, pairs: Mapping[str, Sequence[Pair]], classes: Sequence[str]) -> Path:
    """Images and label maps by split in ADE20K's layout."""
    for split, content in pairs.items():
        for i, (pixels, labels) in enumerate(content):
            save_image(root / "images" / split / f"{i:02d}.png", pixels)
            save_image(root / "annotations" / split / f"{i:02d}.png", labels)
    rows = [f"{number}\t0.5\t{name}" for number, name in enumerate(classes, start=1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tName", *rows]) + "\n")
    return root


class Block(NamedTuple):
    """A rectangular object."""

    label: int
    box: tuple[int, int, int, int]
    """Left, top, width and height."""
    crowd: bool | tuple[int, int, int, int] = False
    """Whether it is a crowd; if its mask covers another part of the image than its box, that part."""


Scene = tuple[Pixels, list[Block]]
"""An image and its objects."""


def write_coco(
    root: Path,
    split: str,
    scenes: Sequence[Scene],
    categories: Mapping[str, int],
    ids: Sequence[int],
    name: str = "{i:02d}.png",
    **fields: Any,
) -> Path:
    """Scenes in COCO's layout: outlines of objects, run lengths of crowds; returns the annotation file.

    Args:
        root: the data set.
        split: name of the image folder, such as `val2017`.
        scenes: the images.
        categories: ids by name, in the order of the blocks' labels.
        ids: id of each image.
        name: format of the file names, of index `i` and `id`.
        fields: replace those of every annotation.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (pixels, blocks) in enumerate(scenes):
        file_name, (height, width, _) = name.format(i=i, id=ids[i]), pixels.shape
        save_image(root / split / file_name, pixels)
        images.append({"id": ids[i], "file_name": file_name, "width": width, "height": height})
        for label, box, crowd in blocks:
            left, top, across, down = crowd if isinstance(crowd, tuple) else box
            right, bottom = left + across, top + down
            outline: Any = [[left, top, right, top, right, bottom, left, bottom]]
            if crowd:
                runs = [left * height + top, *[down, height - down] * across][:-1]
                rest = height * width - sum(runs)
                outline = {"size": [height, width], "counts": [*runs, rest] if rest else runs}
            annotation = {
                "id": len(annotations) + 1,
                "image_id": ids[i],
                "category_id": list(categories.values())[label],
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": int(bool(crowd)),
                "segmentation": outline,
            }
            annotations.append({**annotation, **fields})
    rows = [{"id": number, "name": category} for category, number in categories.items()]
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": rows}))
    return file


_shared: dict[Path, dict[Path, tuple[int, int]]] = {}


def shared(root: Path) -> Path:
    """Data of the session; at its end it must be as it is now."""
    _shared[root] = _files(root)
    return root


def once(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object]) -> Path:
    """Data of the session that the first process of pytest-xdist to need them writes, for all."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    root.parent.mkdir(exist_ok=True)
    written = root.with_name(f"{name}.written")
    with FileLock(f"{root}.lock"):
        if not written.exists():
            shutil.rmtree(root, ignore_errors=True)  # what another process left when it failed
            write(root)
            written.touch()
    return shared(root)


def _files(root: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of each file."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="session", autouse=True)
def shared_data_is_not_changed() -> Iterator[None]:
    """Fail the session if a test has changed shared data."""
    yield
    for root, before in _shared.items():
        assert _files(root) == before, f"{root}: a test has changed shared data: give it its own"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below `data`: an array as an image or label map, text and bytes unchanged."""

    def put(name: str, content: object) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            assert isinstance(content, np.ndarray)
            save_image(path, content)
        return path

    return put


# Image folders


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder of three classes that differ in color: 8 training and 5 validation images each."""
    return once(tmp_path_factory, "pets", lambda root: write_image_folder(root, {"train": 8, "val": 5}))


@pytest.fixture
def own_pets(tmp_path: Path) -> Path:
    """Image folder of three classes of noise: 4 images each, of 40 to 49 × 50 pixels."""
    counts = {"train": 4, "val": 4}
    return write_image_folder(tmp_path / "pets", counts, lambda i: (40 + 3 * i, 50), 256, lambda i: 0)


@pytest.fixture
def bad_pets(pets: Path, tmp_path: Path) -> Path:
    """`pets` with an empty file among the validation images."""
    root = shutil.copytree(pets, tmp_path / "pets")
    (root / "val" / "bee" / "1.png").write_bytes(b"")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Seven images of three classes, each of a gray that gives class and number."""
    for label, (name, count) in enumerate(zip(CLASSES, (3, 2, 2), strict=True)):
        for i in range(count):
            gray = np.full((8, 8, 3), 80 * label + 20 * i, dtype=np.uint8)
            save_image(tmp_path / "val" / name / f"{name}{i}.png", gray)
    return ImageFolder(tmp_path, "val")


# Shards


def gray_png(value: int = 0, size: int = 8) -> bytes:
    """A gray square as PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(file: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    """A tar file of named contents."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file


@pytest.fixture
def shard_pets(own_pets: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Write `own_pets` as shards of a few images each, of a format."""

    def write(kind: str) -> Path:
        write_shards(own_pets, tmp_path / kind, kind=kind, shard_size=0.02, workers=1, progress=False)
        return tmp_path / kind

    return write


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of an object storage in the memory of this process."""
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


# Images with label maps


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a green or blue square, 12 and 5, in ADE20K's layout."""
    random = np.random.RandomState(1)
    pairs = {
        split: [square_pair(i, random, (36 + i, 44), 120, (20, 24), 130) for i in range(count)]
        for split, count in (("training", 12), ("validation", 5))
    }
    return once(tmp_path_factory, "patches", lambda root: write_ade20k(root, pairs, ("green", "blue")))


@pytest.fixture
def labeled(write: Write, tmp_path: Path) -> Path:
    """Four training and two validation images of sky, grass and road, in plain folders."""
    random = np.random.RandomState(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            write(f"images/{split}/{i}.png", random.randint(0, 256, (20 + i, 24, 3), dtype=np.uint8))
            labels = random.randint(0, 3, (20 + i, 24)).astype(np.uint8)
            labels[:3] = 255
            write(f"annotations/{split}/{i}.png", labels)
    write("classes.txt", "sky\ngrass\nroad\n")
    return tmp_path / "data"


# Images with objects


def block_scene(i: int, random: np.random.RandomState) -> Scene:
    """An image with a green block, a blue one, both or none; the fifth, a wide one, also has a crowd."""
    height, width = (44, 36 + i) if i % 3 == 2 else (36 + i, 44)
    pixels = random.randint(0, 120, (height, width, 3), dtype=np.uint8)
    blocks = []
    for label in ((0,), (1,), (0, 1), ())[i % 4]:
        left, top = random.randint(18 * label, 18 * label + 4), random.randint(14 * label, 14 * label + 4)
        pixels[top : top + 16, left : left + 14, 1 + label] += 130
        blocks.append(Block(label, (left, top, 14, 16)))
    return pixels, [*blocks, Block(0, (26, 0, 10, 10), crowd=True)] if i == 4 else blocks


@pytest.fixture(scope="session")
def scenes() -> dict[str, list[Scene]]:
    """Images of green and blue blocks by split, 12 and 6."""
    random = np.random.RandomState(2)
    counts = {"train": 12, "val": 6}
    return {split: [block_scene(i, random) for i in range(count)] for split, count in counts.items()}


@pytest.fixture(scope="session")
def blocks(scenes: dict[str, list[Scene]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scenes` in COCO's layout."""

    def write(root: Path) -> None:
        for split, content in scenes.items():
            write_coco(root, f"{split}2017", content, {"green": 3, "blue": 7}, range(10, 10 + len(content)))

    return once(tmp_path_factory, "blocks", write)


def write_tags(root: Path, split: str, images: Sequence[tuple[Pixels, Sequence[str]]]) -> None:
    """Images with any number of labels each, in a CSV."""
    lines = ["image,labels"]
    for i, (pixels, names) in enumerate(images):
        save_image(root / split / f"{i:02d}.png", pixels)
        lines.append(f"{i:02d}.png,{' '.join(names)}")
    (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def tagged(scenes: dict[str, list[Scene]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scenes` with the colors of their blocks as labels in a CSV; some have none."""

    def write(root: Path) -> None:
        for split, content in scenes.items():
            images = []
            for pixels, blocks in content:
                names = {("green", "blue")[block.label] for block in blocks if not block.crowd}
                images.append((pixels, sorted(names)))
            write_tags(root, split, images)

    return once(tmp_path_factory, "tagged", write)


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Five images of many sizes in COCO's layout, the third empty, the fourth with a crowd."""
    random, sizes = np.random.RandomState(0), [(24, 16), (16, 24), (20, 20), (40, 10), (30, 21)]
    scenes: list[Scene] = []
    for i, (width, height) in enumerate(sizes):
        last_column = (width - 1, 0, 1, height)
        crowd = last_column if i == 3 else False
        blocks = [Block(0, (1, 2, 5, 6)), Block(1, (8, 2, 5, 6), crowd)] if i != 2 else []
        scenes.append((random.randint(0, 256, (height, width, 3), dtype=np.uint8), blocks))
    write_coco(tmp_path / "data", "train2017", scenes, {"ant": 3, "bee": 7}, range(1, 6), "{id}.png")
    return tmp_path / "data"


SIZES = [(40, 30), (64, 64), (1, 1), (33, 70), (50, 20), (31, 31), (90, 41)]
"""Width and height of the images of `rectangles`."""
NOTHING = (3, 5)
"""Those without objects."""
Rectangles = Callable[..., DetectionFolder]


def boxes_of(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """An object of each class, left, top, width and height; they do not touch."""
    width, height = size
    if size == (1, 1):
        return [(0, 0, 1, 1)]
    return [
        (width // 10, 2, width // 3, height // 2),
        (width // 2, height // 3, width // 3, height // 2),
    ]


@pytest.fixture
def rectangles(tmp_path: Path) -> Rectangles:
    """Write images with a red and a green rectangle, some with none, one of one pixel."""

    def put(classes: int = 2, nothing: Sequence[int] = NOTHING, **fields: Any) -> DetectionFolder:
        scenes: list[Scene] = []
        for i, size in enumerate(SIZES):
            pixels = np.full((size[1], size[0], 3), (40, 40, 30 * i), np.uint8)
            boxes = [] if i in nothing else boxes_of(size)[:classes]
            for label, (left, top, width, height) in enumerate(boxes):
                pixels[top : top + height, left : left + width, label] = 250
            scenes.append((pixels, [Block(label, box) for label, box in enumerate(boxes)]))
        categories = dict(list({"red": 5, "green": 6}.items())[:classes])
        write_coco(tmp_path, "val2017", scenes, categories, range(100, 93, -1), "{i}.png", **fields)
        return open_detection(tmp_path, "val", masks=True)

    return put


@pytest.fixture
def errors_of() -> ErrorsOf:
    """Error of opening a training split of objects, and the findings of `metaformer data check`."""

    def both(root: Path, **options: Any) -> tuple[str, tuple[Finding, ...]]:
        with pytest.raises(DataError) as caught:
            open_detection(root, "train", **options)
        report = check_objects(root, ["train"], workers=1, progress=False)
        assert not report.ok
        return str(caught.value), tuple(report.findings)

    return both


def findings(report: CheckReport, grade: str) -> list[tuple[str, str]]:
    """Kind and text of the findings of a grade, in their order."""
    return [(finding.kind, finding.text) for finding in report.findings if finding.grade == grade]


# Icon sets, as npm's package has them

Pack = Callable[[Mapping[str, Any]], Path]


def icon_set(
    prefix: str,
    icons: Mapping[str, str],
    author: str = "Ann",
    spdx: str = "MIT",
    palette: bool = False,
    category: str = "General",
    **fields: Any,
) -> dict[str, Any]:
    """A set as its JSON file has it.

    Args:
        prefix: its name.
        icons: SVG bodies by name.
        author: who drew it.
        spdx: its license.
        palette: whether it has colors.
        category: what it is for.
        fields: others of the file.
    """
    info = {
        "name": prefix.title(),
        "total": len(icons),
        "author": {"name": author, "url": f"https://example.org/{prefix}"},
        "license": {"title": spdx, "spdx": spdx, "url": "https://example.org/license"},
        "samples": sorted(icons)[:2],
        "category": category,
        "palette": palette,
    }
    shown = {name: {"body": body} for name, body in icons.items()}
    return {"prefix": prefix, "info": info, "icons": shown, "width": 24, "height": 24, **fields}


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Write a package: files by name, whose content is bytes or plain values for JSON."""

    def write(files: Mapping[str, Any]) -> Path:
        path = tmp_path / "iconify-json.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in {"package/package.json": {"version": "2.2.0"}, **files}.items():
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path

    return write


def path_of(set_: Mapping[str, Any]) -> str:
    """Where a set lies in the package."""
    return f"package/json/{set_['prefix']}.json"


# Demo data


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data of every task, `demo / TASK`: each digit once."""

    def write(root: Path) -> None:
        write_demo_data(root, copies=1, scenes=(8, 4), progress=False)

    return once(tmp_path_factory, "demo", write)


# Configurations and runs

PLAIN = {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "scale": [0.5, 1.0]}
EPOCHS = {"epochs": 2, "warmup_epochs": 0, "min_lr": 0.0}
OWN_SECTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "classify": {
        "data": {"image_size": 32, "eval_batch_size": 4},
        "augment": PLAIN,
        "loss": {"smoothing": 0.0},
        "schedule": EPOCHS,
    },
    "multilabel": {"data": {"image_size": 32, "eval_batch_size": 4}, "augment": PLAIN, "schedule": EPOCHS},
    "segment": {
        "data": {"image_size": 32},
        "augment": {"mixup": 0.0, "cutmix": 0.0, "erase": 0.0},
        "segment": {"fpn_dim": 16, "head_dim": 16, "resize": None, "reduce_zero_label": False},
        "schedule": EPOCHS,
    },
    "detect": {
        "augment": {"mixup": 0.0, "cutmix": 0.0, "erase": 0.0},
        "detect": {
            "head": "mask_rcnn",
            "fpn_dim": 16,
            "box_fc_dim": 32,
            "roi_batch_size": 32,
            "anchor_scale": 4.0,
            "max_detections": 20,
            "long_side": None,
        },
        "optim": {"lr": 1e-2},
        "schedule": {"steps": 2, "warmup_steps": 0, "min_lr": 0.0},
        "evaluate": {"every_steps": 2},
    },
}
"""What the tiny runs of each task add to the sections of all."""


def changed(plain: dict[str, Any], *changes: dict[str, Any]) -> TrainConfig:
    """A configuration with some fields changed, section by section."""
    for sections in changes:
        for name, fields in sections.items():
            if isinstance(fields, dict):
                plain.setdefault(name, {}).update(fields)
            else:
                plain[name] = fields
    return from_dict(TrainConfig, plain)


def tiny_config(task: str, root: Path, **sections: Any) -> TrainConfig:
    """Configuration of a run of a few steps; keywords are sections with the fields that differ."""
    plain: dict[str, Any] = {
        "task": task,
        "model": {"name": "poolformer_n", "overrides": TINY},
        "data": {"root": str(root), "batch_size": 6, "workers": 0},
        "optim": {"lr": 3e-3},
        "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "keep": 100},
    }
    return changed(plain, OWN_SECTIONS[task], sections)


@pytest.fixture
def configure_task(pets: Path, tagged: Path, patches: Path, blocks: Path) -> Configure:
    """Configuration of a tiny run of a task, the first argument; see `tiny_config`."""
    roots = {"classify": pets, "multilabel": tagged, "segment": patches, "detect": blocks}
    return lambda task, **sections: tiny_config(task, roots[task], **sections)


@pytest.fixture
def configure(pets: Path) -> Configure:
    """Configuration of a tiny classification run."""
    return partial(tiny_config, "classify", pets)


@pytest.fixture
def configure_segment(patches: Path) -> Configure:
    """Configuration of a tiny segmentation run."""
    return partial(tiny_config, "segment", patches)


@pytest.fixture
def configure_detect(blocks: Path) -> Configure:
    """Configuration of a tiny detection run."""
    return partial(tiny_config, "detect", blocks)


def build_task(config: TrainConfig, world: World | None = None) -> Task:
    """The task of a run's configuration, in one process."""
    return TASKS[config.task].build(config, world or World())


def demo_config(task: str, root: Path, **sections: Any) -> TrainConfig:
    """The demo recipe of a task with a tiny network, for two steps on the data of `demo`."""
    tiny: dict[str, dict[str, Any]] = {
        "model": {"name": "poolformer_n", "overrides": TINY},
        "data": {"root": str(root / task), "batch_size": 4, "eval_batch_size": 64, "workers": 0},
        "optim": {"lr": 1e-3},
        "schedule": {"steps": 2, "warmup_epochs": 0, "warmup_steps": 0},
        "evaluate": {"every_steps": 2},
        "runtime": {"device": "cpu", "log_every": 1, "threads": 1},
    }
    for name, fields in sections.items():
        tiny.setdefault(name, {}).update(fields)
    return changed(to_dict(RECIPES[f"demo/{task}"]()), tiny)


@pytest.fixture(scope="session")
def untrained(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each task with random weights."""

    def write(root: Path) -> None:
        for name in TASKS:
            config = demo_config(name, demo)
            task, directory = build_task(config), root / name / "checkpoint"
            directory.parent.mkdir(parents=True)
            state = {"card": task.card(), "config": to_dict(config)}
            write_checkpoint(directory, {"model": task.model.state_dict()}, state)

    root = once(tmp_path_factory, "untrained", write)
    return {name: root / name / "checkpoint" for name in TASKS}


@pytest.fixture(scope="session")
def classify_run(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classification for an epoch of 4 steps, with averaged weights."""
    config = tiny_config(
        "classify", pets, schedule={"epochs": 1}, ema={"decay": 0.5}, evaluate={"crop": 0.75}
    )
    torch.set_num_threads(1)
    return once(tmp_path_factory, "classify_run", lambda run: train(config, run))


@pytest.fixture(scope="session")
def detect_run(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Mask R-CNN that finds green and blue blocks."""
    config = tiny_config(
        "detect",
        blocks,
        optim={"lr": 5e-3, "clip": 1.0},
        schedule={"steps": 80, "warmup_steps": 5},
        evaluate={"every_steps": 40},
    )
    torch.set_num_threads(1)
    return once(tmp_path_factory, "detect_run", lambda run: train(config, run))


def log_lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind of a run's log."""
    return [line for line in read_log(run) if line["kind"] == kind]


@pytest.fixture
def digest() -> Digest:
    """Every tensor of a checkpoint directory, by file and name."""
    from safetensors.torch import load_file

    def read(directory: Path) -> dict[str, Any]:
        return {
            f"{file.name}:{name}": tensor.clone()  # the file stays mapped
            for file in sorted(directory.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }

    return read


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of downloaded weights."""
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path))
    return tmp_path / "weights"


def torchvision_state(model: Detector) -> dict[str, Tensor]:
    """A detector's tensors shaped as in torchvision's arithmetic: a box of the background, P6 made of P5."""
    state, fpn_dim = dict(model.state_dict()), model.config.fpn_dim
    if isinstance(model, RetinaNet):
        state["neck.extra.p6.weight"] = state["neck.extra.p6.weight"].new_zeros(fpn_dim, fpn_dim, 3, 3)
    else:
        for part in ("weight", "bias"):
            name = f"box_predictor.bbox_pred.{part}"
            state[name] = torch.cat([state[name][:4], state[name]])
    return state


def randomized(model: nn.Module) -> Any:
    """A network whose every weight and statistic is random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.normal_(0.5, 0.3).abs_()
    return model.eval()


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal_states(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names, shapes and values."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Predictions

COLORS = ((0, 0, 0), (200, 40, 40), (40, 40, 200))


def gray_photo(file: Path, size: tuple[int, int], gray: int) -> Image.Image:
    """A gray image, which is also written to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (gray, gray, gray))
    image.save(file)
    return image


@pytest.fixture
def segmented(tmp_path: Path) -> Callable[..., Prediction]:
    """Segmentation of a gray image file into three classes: left, middle and right."""

    def make(
        name: str = "a/x.jpg", size: tuple[int, int] = (12, 8), gray: int = 120, **fields: Any
    ) -> Prediction:
        file, (width, height) = tmp_path / "photos" / name, size
        label_map = np.repeat((np.arange(width) * 3 // width).astype(np.uint8)[None], height, axis=0)
        result = Segmentation(str(file), label_map, ("sky", "é, b", "<i>"), COLORS)
        return Prediction(result, gray_photo(file, size, gray), **fields)

    return make


@pytest.fixture
def detected(tmp_path: Path) -> Callable[..., Prediction]:
    """Detection of two objects in a gray image file, left and right; their masks are the upper halves."""

    def make(
        name: str = "a/x.jpg", size: tuple[int, int] = (400, 300), masks: bool = True, **fields: Any
    ) -> Prediction:
        file, (width, height) = tmp_path / "photos" / name, size
        relative = np.array([[0.1, 0.2, 0.4, 0.8], [0.6, 0.2, 0.9, 0.8]])
        boxes = (relative * [width, height, width, height]).round()
        drawn = np.zeros((2, height, width), bool)
        for mask, (left, top, right, bottom) in zip(drawn, boxes.astype(int).tolist(), strict=True):
            mask[top : (top + bottom) // 2, left:right] = True
        objects = DetectedObjects(
            str(file),
            size,
            boxes.astype(np.float32),
            np.array([0.875, 0.5], np.float32),
            np.array([1, 0]),
            ("é, b", "<i>"),
            COLORS[1:],
            tuple(encode(mask) for mask in drawn) if masks else None,
        )
        return Prediction(objects, gray_photo(file, size, 100), **fields)

    return make


# The command line


class Parsed(Exception):
    """A command line was parsed."""


@pytest.fixture
def parse_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Parse a shell command of metaformer without running it."""

    def stop(*arguments: Any) -> None:
        raise Parsed

    def parse_args(self: Parser, argv: list[str]) -> None:
        stop(super(Parser, self).parse_args(argv))

    def parse(command: str) -> None:
        args = list(takewhile(lambda arg: arg not in (">", "|", "&"), shlex.split(command, comments=True)))
        name, *rest = args[args.index("metaformer") + 1 :]
        with pytest.raises((Parsed, SystemExit)):
            import_module(f"metaformer.cli.{COMMANDS[name].module}").run(rest)

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    monkeypatch.setattr("metaformer.training.train.train", stop)
    return parse
