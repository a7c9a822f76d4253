from collections.abc import Callable
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
def labelled(write: Write, tmp_path: Path) -> Path:
    """Four pictures to learn from and two held out, of sky, grass and road, in plain folders."""
    draw = np.random.RandomState(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            write(f"images/{split}/{i}.png", draw.randint(0, 256, (20 + i, 24, 3), dtype=np.uint8))
            labels = draw.randint(0, 3, (20 + i, 24)).astype(np.uint8)
            labels[:3] = 255
            write(f"annotations/{split}/{i}.png", labels)
    write("classes.txt", "sky\ngrass\nroad\n")
    return tmp_path / "data"
