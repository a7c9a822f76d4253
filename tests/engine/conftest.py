from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.engine.config import TrainConfig
from metaformer.engine.settings import from_dict

Configure = Callable[..., TrainConfig]
TINY = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}


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
        for name, fields in sections.items():
            if isinstance(fields, dict):
                plain.setdefault(name, {}).update(fields)
            else:
                plain[name] = fields
        return from_dict(plain)

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
