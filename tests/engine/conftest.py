import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.engine.config import TrainConfig
from metaformer.engine.output.sink import Seen
from metaformer.engine.settings import from_dict
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
