import json
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


@pytest.fixture
def objects(write: Write, tmp_path: Path) -> Path:
    """Five pictures of many sizes in COCO's layout; the third holds nothing, the fourth a crowd."""
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
