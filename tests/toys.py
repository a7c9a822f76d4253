"""Small data sets, configurations and runs that tests use: fixtures for every folder."""

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.checkpoint.checkpoint import write_checkpoint
from metaformer.cli import COMMANDS
from metaformer.cli.parser import Parser
from metaformer.config import TrainConfig
from metaformer.data.folder import ImageFolder
from metaformer.data.rle import encode
from metaformer.distributed import World
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.retinanet import RetinaNet
from metaformer.recipes import RECIPES
from metaformer.serialize import from_dict, to_dict
from metaformer.tasks import TASKS
from metaformer.tasks.base import Task
from metaformer.tasks.demo import write_demo_data
from metaformer.tasks.detection.dataset import DetectionFolder, open_detection
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.training.train import train

Configure = Callable[..., TrainConfig]


TINY = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}


def changed(plain: dict[str, Any], sections: dict[str, Any]) -> TrainConfig:
    """A configuration with some fields changed, section by section."""
    for name, fields in sections.items():
        if isinstance(fields, dict):
            plain.setdefault(name, {}).update(fields)
        else:
            plain[name] = fields
    return from_dict(TrainConfig, plain)


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes told apart by color: 8 training and 5 validation images each."""
    root, draw = tmp_path_factory.mktemp("pets"), np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 5)):
        for channel, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.randint(0, 120, (36 + i, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 130
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def configure(pets: Path) -> Configure:
    """Make a tiny run's configuration; keywords are sections with the fields that differ."""

    def make(**sections: Any) -> TrainConfig:
        plain: dict[str, Any] = {
            "model": {"name": "poolformer_n", "overrides": TINY},
            "data": {
                "root": str(pets), "image_size": 32, "batch_size": 6, "eval_batch_size": 4, "workers": 0,
            },
            "augment": {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "scale": [0.5, 1.0]},
            "loss": {"smoothing": 0.0},
            "optim": {"lr": 3e-3},
            "schedule": {"epochs": 2, "warmup_epochs": 0, "min_lr": 0.0},
            "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "keep": 100},
        }  # fmt: skip
        return changed(plain, sections)

    return make


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a green or blue square on a third class, 12 and 5 of them; ADE20K's layout."""
    root, draw = tmp_path_factory.mktemp("patches"), np.random.RandomState(1)
    for split, count in (("training", 12), ("validation", 5)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = draw.randint(0, 120, (36 + i, 44, 3), dtype=np.uint8)
            labels = np.zeros((36 + i, 44), dtype=np.uint8)
            top, left = draw.randint(0, 16, 2)
            labels[top : top + 20, left : left + 24] = 1 + i % 2
            pixels[..., 1 + i % 2] += (labels > 0).astype(np.uint8) * 130
            Image.fromarray(pixels).save(root / "images" / split / f"{i:02d}.png")
            Image.fromarray(labels).save(root / "annotations" / split / f"{i:02d}.png")
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.5\tgreen\n2\t0.5\tblue\n")
    return root


@pytest.fixture
def configure_segment(patches: Path) -> Configure:
    """Make a tiny segmentation run's configuration; keywords are sections with the fields that differ."""

    def make(**sections: Any) -> TrainConfig:
        plain: dict[str, Any] = {
            "task": "segment",
            "model": {"name": "poolformer_n", "overrides": TINY},
            "data": {"root": str(patches), "image_size": 32, "batch_size": 6, "workers": 0},
            "augment": {"mixup": 0.0, "cutmix": 0.0, "erase": 0.0},
            "segment": {"fpn_dim": 16, "head_dim": 16, "resize": None, "reduce_zero_label": False},
            "optim": {"lr": 3e-3},
            "schedule": {"epochs": 2, "warmup_epochs": 0, "min_lr": 0.0},
            "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "keep": 100},
        }
        return changed(plain, sections)

    return make


class Block(NamedTuple):
    """An object of the images of detection."""

    label: int
    box: tuple[int, int, int, int]
    """Left, top, width and height."""
    crowd: bool = False


Scene = tuple[NDArray[np.uint8], list[Block]]


def scene(i: int, draw: np.random.RandomState) -> Scene:
    """An image with a green block, a blue one, both or neither; the wide ones' third has a crowd."""
    height, width = (44, 36 + i) if i % 3 == 2 else (36 + i, 44)
    pixels = draw.randint(0, 120, (height, width, 3), dtype=np.uint8)
    blocks = []
    for label in ((0,), (1,), (0, 1), ())[i % 4]:
        left, top = draw.randint(18 * label, 18 * label + 4), draw.randint(14 * label, 14 * label + 4)
        pixels[top : top + 16, left : left + 14, 1 + label] += 130
        blocks.append(Block(label, (left, top, 14, 16)))
    return pixels, [*blocks, Block(0, (26, 0, 10, 10), crowd=True)] if i == 4 else blocks


@pytest.fixture(scope="session")
def scenes() -> dict[str, list[Scene]]:
    """Images of green and blue blocks by split, 12 and 6 of them."""
    draw = np.random.RandomState(2)
    return {split: [scene(i, draw) for i in range(count)] for split, count in (("train", 12), ("val", 6))}


def annotation(number: int, block: Block, height: int, width: int) -> dict[str, Any]:
    """An object as COCO writes it; a crowd in run lengths, others as an outline."""
    left, top, across, down = block.box
    right, bottom = left + across, top + down
    outline: Any = [[left, top, right, top, right, bottom, left, bottom]]
    if block.crowd:
        runs = [left * height + top, *[down, height - down] * across]
        runs[-1] = height * width - sum(runs[:-1])
        outline = {"size": [height, width], "counts": runs}
    return {
        "id": number,
        "category_id": (3, 7)[block.label],
        "bbox": list(block.box),
        "area": across * down,
        "iscrowd": int(block.crowd),
        "segmentation": outline,
    }


@pytest.fixture(scope="session")
def blocks(scenes: dict[str, list[Scene]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These in COCO's layout, with outlines."""
    root = tmp_path_factory.mktemp("blocks")
    (root / "annotations").mkdir()
    for split, scenes_of_split in scenes.items():
        (root / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, (pixels, there) in enumerate(scenes_of_split):
            name, (height, width, _) = f"{i:02d}.png", pixels.shape
            Image.fromarray(pixels).save(root / f"{split}2017" / name)
            images.append({"id": 10 + i, "file_name": name, "width": width, "height": height})
            for block in there:
                one = annotation(len(annotations) + 1, block, height, width)
                annotations.append({**one, "image_id": 10 + i})
        categories = [{"id": 3, "name": "green"}, {"id": 7, "name": "blue"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="session")
def tagged(scenes: dict[str, list[Scene]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images with the colors of their blocks as labels, in SPLIT.csv; some have none."""
    root = tmp_path_factory.mktemp("tagged")
    for split, images in scenes.items():
        (root / split).mkdir()
        lines = ["image,labels"]
        for i, (pixels, there) in enumerate(images):
            Image.fromarray(pixels).save(root / split / f"{i:02d}.png")
            names = {("green", "blue")[block.label] for block in there if not block.crowd}
            lines.append(f"{i:02d}.png,{' '.join(sorted(names))}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def configure_multilabel(tagged: Path) -> Configure:
    """Make a tiny multi-label run's configuration; keywords are sections with the fields that differ."""

    def make(**sections: Any) -> TrainConfig:
        plain: dict[str, Any] = {
            "task": "multilabel",
            "model": {"name": "poolformer_n", "overrides": TINY},
            "data": {
                "root": str(tagged), "image_size": 32, "batch_size": 6, "eval_batch_size": 4, "workers": 0,
            },
            "augment": {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "scale": [0.5, 1.0]},
            "optim": {"lr": 3e-3},
            "schedule": {"epochs": 2, "warmup_epochs": 0, "min_lr": 0.0},
            "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "keep": 100},
        }  # fmt: skip
        return changed(plain, sections)

    return make


def detect_plain(root: Path) -> dict[str, Any]:
    """A tiny detection run's configuration."""
    return {
        "task": "detect",
        "model": {"name": "poolformer_n", "overrides": TINY},
        "data": {"root": str(root), "batch_size": 6, "workers": 0},
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
        "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "keep": 100},
    }


@pytest.fixture
def configure_detect(blocks: Path) -> Configure:
    """Make a tiny detection run's configuration; keywords are sections with the fields that differ."""

    def make(**sections: Any) -> TrainConfig:
        return changed(detect_plain(blocks), sections)

    return make


@pytest.fixture(scope="session")
def detect_run(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Mask R-CNN that finds green and blue blocks; not to be changed."""
    plan = {
        "optim": {"lr": 5e-3, "clip": 1.0},
        "schedule": {"steps": 80, "warmup_steps": 5},
        "evaluate": {"every_steps": 40},
    }
    torch.set_num_threads(1)
    return train(changed(detect_plain(blocks), plan), tmp_path_factory.mktemp("detect") / "run").run


@pytest.fixture
def digest() -> Callable[[Path], dict[str, Any]]:
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
def bad_pets(pets: Path, tmp_path: Path) -> Path:
    """The same with one empty file among the validation images."""
    root = tmp_path / "pets"
    shutil.copytree(pets, root)
    (root / "val" / "bee" / "1.png").write_bytes(b"")
    return root


@pytest.fixture
def segmented(tmp_path: Path) -> Callable[..., Prediction]:
    """Make an image file and its segmentation into three classes: left, middle and right."""

    def make(
        name: str = "a/x.jpg", size: tuple[int, int] = (12, 8), gray: int = 120, **fields: Any
    ) -> Prediction:
        file, (width, height) = tmp_path / "photos" / name, size
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, (gray, gray, gray))
        image.save(file)
        label_map = np.repeat((np.arange(width) * 3 // width).astype(np.uint8)[None], height, axis=0)
        colors = ((0, 0, 0), (200, 40, 40), (40, 40, 200))
        return Prediction(Segmentation(str(file), label_map, ("sky", "é, b", "<i>"), colors), image, **fields)

    return make


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small demo data of every task: each digit once; not to be changed."""
    root = tmp_path_factory.mktemp("data") / "demo"
    write_demo_data(root, copies=1, scenes=(8, 4), progress=False)
    return root


@pytest.fixture
def noise_pets(tmp_path: Path) -> Path:
    """Three classes of four images, in train and val."""
    draw = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = draw.randint(0, 256, (40 + 3 * i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pets"


Write = Callable[[str, object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below `data`: an array as PNG (three axes) or label map (two), text as it is."""

    def put(name: str, content: object) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            assert isinstance(content, np.ndarray)
            Image.fromarray(content).save(path)
        return path

    return put


@pytest.fixture
def labeled(write: Write, tmp_path: Path) -> Path:
    """Four images to learn from and two held out, of sky, grass and road, in plain folders."""
    draw = np.random.RandomState(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            write(f"images/{split}/{i}.png", draw.randint(0, 256, (20 + i, 24, 3), dtype=np.uint8))
            labels = draw.randint(0, 3, (20 + i, 24)).astype(np.uint8)
            labels[:3] = 255
            write(f"annotations/{split}/{i}.png", labels)
    write("classes.txt", "sky\ngrass\nroad\n")
    return tmp_path / "data"


@pytest.fixture
def objects(write: Write, tmp_path: Path) -> Path:
    """Five images of many sizes in COCO's layout; the third holds nothing, the fourth a crowd."""
    draw = np.random.RandomState(0)
    images, annotations = [], []
    for number, (width, height) in enumerate([(24, 16), (16, 24), (20, 20), (40, 10), (30, 21)], start=1):
        write(f"train2017/{number}.png", draw.randint(0, 256, (height, width, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for left in (1, 8) if number != 3 else ():
            crowd = number == 4 and left == 8
            runs = [width * height - height, height]  # the last column
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 3 if left == 1 else 7,
                    "bbox": [left, 2, 5, 6],
                    "area": 30,
                    "iscrowd": int(crowd),
                    "segmentation": {"size": [height, width], "counts": runs}
                    if crowd
                    else [[left, 2, left + 5, 2, left + 5, 8, left, 8]],
                }
            )
    categories = [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write("annotations/instances_train2017.json", json.dumps(document))
    return tmp_path / "data"


@pytest.fixture
def spotted(tmp_path: Path) -> Callable[..., Prediction]:
    """Make a gray image file with two objects in it, left and right, masks their upper halves."""

    def make(
        name: str = "a/x.jpg", size: tuple[int, int] = (400, 300), masks: bool = True, **fields: Any
    ) -> Prediction:
        file, (width, height) = tmp_path / "photos" / name, size
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, (100, 100, 100))
        image.save(file)
        boxes = (
            np.array([[0.1, 0.2, 0.4, 0.8], [0.6, 0.2, 0.9, 0.8]]) * [width, height, width, height]
        ).round()
        drawn = np.zeros((2, height, width), bool)
        for place, (left, top, right, bottom) in zip(drawn, boxes.astype(int).tolist(), strict=True):
            place[top : (top + bottom) // 2, left:right] = True
        objects = DetectedObjects(
            str(file),
            size,
            boxes.astype(np.float32),
            np.array([0.875, 0.5], np.float32),
            np.array([1, 0]),
            ("é, b", "<i>"),
            ((200, 40, 40), (40, 40, 200)),
            tuple(encode(place) for place in drawn) if masks else None,
        )
        return Prediction(objects, image, **fields)

    return make


Rectangles = Callable[..., DetectionFolder]


SIZES = [(40, 30), (64, 64), (1, 1), (33, 70), (50, 20), (31, 31), (90, 41)]


NOTHING = (3, 5)
"""Images without objects."""


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Seven images of three classes, each of one gray that tells its class and number."""
    for label, (name, count) in enumerate((("ant", 3), ("bee", 2), ("cat", 2))):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(count):
            gray = np.full((8, 8, 3), 80 * label + 20 * i, dtype=np.uint8)
            Image.fromarray(gray).save(tmp_path / "val" / name / f"{name}{i}.png")
    return ImageFolder(tmp_path, "val")


def boxes_of(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """An object of each class, left, top, width and height; they do not touch."""
    width, height = size
    if size == (1, 1):
        return [(0, 0, 1, 1)]
    return [
        (width // 10, 2, width // 3, height // 2),
        (width // 2, height // 3, width // 3, height // 2),
    ]


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


@pytest.fixture
def rectangles(tmp_path: Path) -> Rectangles:
    """Write images with a red and a green rectangle, some with none, one of one pixel."""

    def put(classes: int = 2, nothing: Sequence[int] = NOTHING, **fields: Any) -> DetectionFolder:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (tmp_path / "val2017").mkdir()
        (tmp_path / "annotations").mkdir()
        for i, size in enumerate(SIZES):
            pixels = np.full((size[1], size[0], 3), (40, 40, 30 * i), np.uint8)
            images.append({"id": 100 - i, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
            for label, box in enumerate([] if i in nothing else boxes_of(size)[:classes]):
                left, top, width, height = box
                right, bottom = left + width, top + height
                pixels[top:bottom, left:right, label] = 250
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 - i,
                        "category_id": 5 + label,
                        "bbox": box,
                        "area": width * height,
                        "iscrowd": 0,
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                        **fields,
                    }
                )
            Image.fromarray(pixels).save(tmp_path / "val2017" / f"{i}.png")
        categories = [{"id": 5, "name": "red"}, {"id": 6, "name": "green"}][:classes]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
        return open_detection(tmp_path, "val", masks=True)

    return put


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that downloads would have filled."""
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path))
    return tmp_path / "weights"


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
    directories = {}
    for name in TASKS:
        config = demo_config(name, demo)
        task, directories[name] = build_task(config), tmp_path_factory.mktemp(name) / "checkpoint"
        state = {"card": task.card(), "config": to_dict(config)}
        write_checkpoint(directories[name], {"model": task.model.state_dict()}, state)
    return directories


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
        args = shlex.split(command, comments=True)
        name, *rest = args[args.index("metaformer") + 1 :]
        with pytest.raises((Parsed, SystemExit)):
            import_module(f"metaformer.cli.{COMMANDS[name].module}").run(rest)

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    monkeypatch.setattr("metaformer.training.train.train", stop)
    return parse
