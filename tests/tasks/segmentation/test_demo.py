from pathlib import Path

import numpy as np
from PIL import Image


def test_an_ade20k_tree(demo: Path) -> None:
    root, numbers = demo / "segment", set()
    for split, count in (("training", 8), ("validation", 4)):
        images = sorted((root / "images" / split).iterdir())
        label_maps = sorted((root / "annotations" / split).iterdir())
        assert [p.stem for p in images] == [p.stem for p in label_maps] and len(images) == count
        assert {p.suffix for p in images} == {".jpg"} and {p.suffix for p in label_maps} == {".png"}
        for image, label_map in zip(images, label_maps, strict=True):
            with Image.open(image) as opened, Image.open(label_map) as labels:
                assert (opened.mode, labels.mode) == ("RGB", "L")
                assert opened.size == labels.size == (128, 128)
                found = set(np.unique(np.asarray(labels)).tolist())
            assert 0 in found and len(found) >= 2
            numbers |= found
    assert numbers <= set(range(11)) and len(numbers) > 6
    rows = [line.split("\t") for line in (root / "objectInfo150.txt").read_text().splitlines()]
    assert rows[0] == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert [(int(row[0]), row[-1]) for row in rows[1:]] == [(d + 1, str(d)) for d in range(10)]
