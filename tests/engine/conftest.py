import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from metaformer.engine.config import TrainConfig
from metaformer.engine.output.sink import Seen
from metaformer.engine.settings import from_dict
from metaformer.engine.train import train
from metaformer.tasks.segment_results import Segmentation

Configure = Callable[..., TrainConfig]
TINY = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}


def changed(plain: dict[str, Any], sections: dict[str, Any]) -> TrainConfig:
    """A configuration with some fields changed, section by section."""
    for name, fields in sections.items():
        if isinstance(fields, dict):
            plain.setdefault(name, {}).update(fields)
        else:
            plain[name] = fields
    return from_dict(plain)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes told apart by colour: 8 training and 5 validation pictures each."""
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
    """Pictures with a green or blue square on a third class, 12 and 5 of them; ADE20K's layout."""
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
            "segment": {"fpn_dim": 16, "head_dim": 16, "base": None, "reduce_zero_label": False},
            "optim": {"lr": 3e-3},
            "schedule": {"epochs": 2, "warmup_epochs": 0, "min_lr": 0.0},
            "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "keep": 100},
        }
        return changed(plain, sections)

    return make


class Block(NamedTuple):
    """An object of the pictures of detection."""

    label: int
    box: tuple[int, int, int, int]
    """Left, top, width and height."""
    crowd: bool = False


Scene = tuple[NDArray[np.uint8], list[Block]]


def scene(i: int, draw: np.random.RandomState) -> Scene:
    """A picture with a green block, a blue one, both or neither; the wide ones' third has a crowd."""
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
    """Pictures of green and blue blocks by split, 12 and 6 of them."""
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
    for split, pictures in scenes.items():
        (root / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, (pixels, there) in enumerate(pictures):
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
            "box_samples": 32,
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
    """The same with one empty file among the validation pictures."""
    root = tmp_path / "pets"
    shutil.copytree(pets, root)
    (root / "val" / "bee" / "1.png").write_bytes(b"")
    return root


@pytest.fixture
def seen(tmp_path: Path) -> Callable[..., Seen]:
    """Make a picture file with three classes in it, left, middle and right, and its result."""

    def make(name: str = "a/x.jpg", size: tuple[int, int] = (12, 8), grey: int = 120, **fields: Any) -> Seen:
        file, (width, height) = tmp_path / "photos" / name, size
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", size, (grey, grey, grey))
        picture.save(file)
        label_map = np.repeat((np.arange(width) * 3 // width).astype(np.uint8)[None], height, axis=0)
        colours = ((0, 0, 0), (200, 40, 40), (40, 40, 200))
        return Seen(picture, Segmentation(str(file), label_map, ("sky", "é, b", "<i>"), colours), **fields)

    return make
