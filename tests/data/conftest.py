from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.data.demo import Demo, write_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Small demo data: every digit once."""
    return write_demo(tmp_path_factory.mktemp("data") / "demo", copies=1, scenes=(8, 4), progress=False)


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `datasets` keep what it prepares with the tests."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "arrow"))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three classes of four pictures, in train and val."""
    draw = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = draw.randint(0, 256, (40 + 3 * i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pets"
