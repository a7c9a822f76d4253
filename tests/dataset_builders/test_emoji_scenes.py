"""Scenes of emoji, from small packages of drawings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.cli import main
from metaformer.data.folder import ImageFolder
from metaformer.dataset_builders.emoji_scenes import write_emoji_scenes
from metaformer.errors import ConfigError, DataError
from metaformer.tasks import TASKS
from toys import Pack, icon_set, path_of

ARTISTS = {"ann": "#f33", "bob": "#3f3", "cem": "#33f", "dan": "#ff3"}
"""Sets, and the color that an artist draws with."""
COLORS = {name: np.array([int(digit * 2, 16) for digit in color[1:]]) for name, color in ARTISTS.items()}


def packed(pack: Pack) -> Path:
    sets = []
    for prefix, color in ARTISTS.items():
        drawings = {
            "square": f'<rect x="2" y="2" width="20" height="20" fill="{color}"/>',
            "disc": f'<circle cx="12" cy="12" r="10" fill="{color}"/>',
            "bar": f'<rect x="1" y="8" width="22" height="8" fill="{color}"/>',
            "flag-x": f'<rect width="9" height="9" fill="{color}"/>',
        }
        kinds = {"palette": True, "category": "Emoji"}
        sets.append(icon_set(prefix, drawings, prefix.title(), "Apache-2.0", **kinds))
    return pack({path_of(one): one for one in sets})


def written(source: Path, root: Path, **options: Any) -> dict[Path, int]:
    small = {"classes": 3, "copies": 1, "scenes": (8, 4), **options}
    return write_emoji_scenes(root, source=source, progress=False, **small)


def test_every_task_gets_scenes_whose_artists_are_in_one_split(pack: Pack, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    images = written(packed(pack), root)
    assert images == {root / task: 12 for task in TASKS}
    artists: dict[str, set[str]] = {}
    for split in ("train", "val"):
        folder = ImageFolder(root / "classify", split)
        assert folder.classes == ("bar", "disc", "square")
        document = json.loads((root / f"detect/annotations/instances_{split}2017.json").read_text())
        assert [one["name"] for one in document["categories"]] == ["bar", "disc", "square"]
        assert "Emoji" in document["info"]["description"]
        found = set()
        for one in document["annotations"]:
            file = root / f"detect/{split}2017/{one['image_id']:012d}.jpg"
            left, top, width, height = one["bbox"]
            pixels = np.asarray(Image.open(file)).astype(int)
            color = np.median(pixels[top : top + height, left : left + width].reshape(-1, 3), axis=0)
            found.add(min(COLORS, key=lambda name: np.abs(COLORS[name] - color).sum()))
        artists[split] = found
    assert not artists["train"] & artists["val"] and len(artists["val"]) == 1
    assert "[Ann]" in (root / "ATTRIBUTION.md").read_text()


def test_masks_are_those_of_the_drawings(pack: Pack, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    written(packed(pack), root)
    sources = json.loads((root / "segment/sources.json").read_text())
    areas = {1: [], 2: [], 3: []}
    for file in sorted((root / "segment/annotations/training").iterdir()):
        labels = np.asarray(Image.open(file))
        if len(sources[file.stem]) == 1:
            rows, columns = (np.flatnonzero((labels > 0).any(axis)) for axis in (1, 0))
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            areas[int(labels.max())].append((labels > 0).sum() / box)
    assert sum(map(len, areas.values())) >= 1
    for number, share in {1: 1.0, 2: np.pi / 4, 3: 1.0}.items():
        assert all(abs(area - share) < 0.06 for area in areas[number]), areas


def test_the_same_arguments_give_the_same_bytes(pack: Pack, tmp_path: Path) -> None:
    source, roots = packed(pack), (tmp_path / "one", tmp_path / "other")
    for root in roots:
        written(source, root)
    one, other = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in roots
    )
    assert one == other


def test_too_few_emoji_or_artists_are_an_error(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 emoji of one name, not 5"):
        written(packed(pack), tmp_path / "scenes", classes=5)
    with pytest.raises(ConfigError, match="classes"):
        written(packed(pack), tmp_path / "scenes", classes=1)
    assert not (tmp_path / "scenes").exists()


def test_the_command(pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--classes=3", "--copies=1", "--scenes", "2", "1"]
    assert main(["data", "emoji-scenes", str(tmp_path / "out"), f"--from={packed(pack)}", *few]) == 0
    out = capsys.readouterr().out
    assert f"3 images: {tmp_path / 'out' / 'segment'}" in out and "overview.jpg" in out
