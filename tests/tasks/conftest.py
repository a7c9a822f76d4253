from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.data.folder import ImageFolder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Seven pictures of three classes, each of one grey that tells its class and number."""
    for label, (name, count) in enumerate((("ant", 3), ("bee", 2), ("cat", 2))):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(count):
            grey = np.full((8, 8, 3), 80 * label + 20 * i, dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / "val" / name / f"{name}{i}.png")
    return ImageFolder(tmp_path, "val")
