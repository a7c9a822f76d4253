import inspect
import os
import shutil
import socket
import subprocess
import sys
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


@pytest.fixture
def bad_pets(pets: Path, tmp_path: Path) -> Path:
    """The same with one empty file among the validation pictures."""
    root = tmp_path / "pets"
    shutil.copytree(pets, root)
    (root / "val" / "bee" / "1.png").write_bytes(b"")
    return root


RANK = "import runpy, sys; file, name, *rest = sys.argv[1:]; runpy.run_path(file)[name](*rest)"


@pytest.fixture
def two_ranks() -> Callable[..., list[str]]:
    """Call a function of a test's file in two processes, as torchrun would; gives what each printed."""

    def start(function: Callable[..., None], *words: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        whole = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        file = inspect.getfile(function)
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", RANK, file, function.__name__, *words],
                env={**os.environ, **whole, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            ends = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert [process.returncode for process in processes] == [0, 0], ends
        return [out for out, _ in ends]

    return start
