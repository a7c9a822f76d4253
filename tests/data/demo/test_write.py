import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.data.demo.write import Demo, write_demo
from metaformer.data.folder import ImageFolder
from metaformer.errors import ConfigError, OutputError

SPLITS = ("train", "val")


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def source(path: Path) -> int:
    return int(path.stem.split("_")[0].removeprefix("digit"))


def coco(demo: Demo, split: str) -> dict[str, list[dict[str, object]]]:
    return json.loads((demo.detect / f"annotations/instances_{split}2017.json").read_text())


def decode(counts: list[int], size: list[int]) -> np.ndarray:
    values = np.arange(len(counts)) % 2
    return np.repeat(values, counts).reshape(size, order="F").astype(bool)


def test_classify_is_an_image_folder_with_disjoint_digits(demo: Demo) -> None:
    train = ImageFolder(demo.classify, "train")
    val = ImageFolder(demo.classify, "val", train.classes)
    assert train.classes == tuple("0123456789")
    sources = [{source(path) for path in folder.paths} for folder in (train, val)]
    assert not sources[0] & sources[1]
    assert sources[0] | sources[1] == set(range(1797))
    assert len(val) == len(sources[1]) and 0.18 < len(val) / 1797 < 0.2
    assert len(train) == len(sources[0])
    assert not train.ignored and not val.ignored
    for folder in (train, val):
        for i in range(0, len(folder), 40):
            assert folder.image(i).size == (64, 64)


def test_labels_are_the_digits(demo: Demo) -> None:
    from sklearn.datasets import load_digits

    truth = load_digits().target
    for split in SPLITS:
        folder = ImageFolder(demo.classify, split)
        assert all(truth[source(p)] == label for p, label in zip(folder.paths, folder.labels, strict=True))


def test_all_three_sets_keep_the_same_digits_apart(demo: Demo) -> None:
    held_out = {source(path) for path in ImageFolder(demo.classify, "val").paths}
    used = json.loads((demo.segment / "sources.json").read_text())
    seen = {
        split: {d for name, digits in used.items() if f"_{split}_" in name for d in digits}
        for split in SPLITS
    }
    for split in SPLITS:
        seen[split] |= {int(a["source"]) for a in coco(demo, split)["annotations"]}
    assert seen["val"] <= held_out
    assert seen["train"] and not seen["train"] & held_out


def test_segment_is_an_ade20k_tree(demo: Demo) -> None:
    labels = set()
    for folder, count in (("training", 8), ("validation", 4)):
        images = sorted((demo.segment / "images" / folder).iterdir())
        maps = sorted((demo.segment / "annotations" / folder).iterdir())
        assert [p.stem for p in images] == [p.stem for p in maps] and len(images) == count
        assert {p.suffix for p in images} == {".jpg"} and {p.suffix for p in maps} == {".png"}
        for image, annotation in zip(images, maps, strict=True):
            with Image.open(image) as opened, Image.open(annotation) as label:
                assert (opened.mode, label.mode, opened.size, label.size) == (
                    "RGB",
                    "L",
                    (128, 128),
                    (128, 128),
                )
                found = set(np.unique(np.asarray(label)).tolist())
            assert 0 in found and len(found) >= 2
            labels |= found
    assert labels <= set(range(11)) and len(labels) > 6
    lines = (demo.segment / "objectInfo150.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    assert rows[0] == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert [(int(row[0]), row[-1]) for row in rows[1:]] == [(d + 1, str(d)) for d in range(10)]


@pytest.mark.parametrize("split", SPLITS)
def test_detect_is_valid_coco(demo: Demo, split: str) -> None:
    document = coco(demo, split)
    images = {image["id"]: image for image in document["images"]}
    files = sorted((demo.detect / f"{split}2017").iterdir())
    assert [image["file_name"] for image in images.values()] == [f.name for f in files]
    assert [c["id"] for c in document["categories"]] == list(range(1, 11))
    assert [a["id"] for a in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    assert {a["image_id"] for a in document["annotations"]} == set(images)
    together = {i: np.zeros((128, 128), int) for i in images}
    for annotation in document["annotations"]:
        segmentation = annotation["segmentation"]
        assert sum(segmentation["counts"]) == 128 * 128 and segmentation["size"] == [128, 128]
        mask = decode(segmentation["counts"], segmentation["size"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (columns[0], rows[0], columns[-1], rows[-1])
        assert annotation["area"] == mask.sum() > 50
        assert annotation["iscrowd"] == 0 and 1 <= annotation["category_id"] <= 10
        together[annotation["image_id"]] += mask
    for image, file in zip(images.values(), files, strict=True):
        assert together[image["id"]].max() == 1
        assert 1 <= sum(a["image_id"] == image["id"] for a in document["annotations"]) <= 5
        with Image.open(file) as opened:
            assert opened.size == (image["width"], image["height"]) == (128, 128)


def test_masks_lie_on_the_digits(demo: Demo) -> None:
    document = coco(demo, "train")
    for annotation in document["annotations"]:
        with Image.open(demo.detect / "train2017" / f"{annotation['image_id']:012d}.jpg") as opened:
            gray = np.asarray(opened.convert("L")).astype(float)
        x, y, width, height = annotation["bbox"]
        inside = decode(annotation["segmentation"]["counts"], [128, 128])[y : y + height, x : x + width]
        box = gray[y : y + height, x : x + width]
        assert np.quantile(box[inside], 0.75) > np.median(box[~inside]) + 20


def test_writing_again_mends_and_changes_nothing_else(demo: Demo, tmp_path: Path) -> None:
    root = demo.classify.parent
    before = contents(root)
    assert demo.images == sum("annotations" not in n and n.endswith((".png", ".jpg")) for n in before)
    victim = demo.classify / "val/3"
    lost = sorted(victim.iterdir())
    lost[0].unlink()
    lost[1].write_bytes(b"damaged")
    kept = demo.classify / "train/0"
    times = {p: p.stat().st_mtime_ns for p in kept.iterdir()}
    assert write_demo(root, copies=1, scenes=(8, 4), progress=False) == demo
    assert contents(root) == before
    assert times == {p: p.stat().st_mtime_ns for p in kept.iterdir()}


def test_same_arguments_same_bytes_in_another_process(demo: Demo, tmp_path: Path) -> None:
    code = (
        "import sys; from metaformer.data.demo.write import write_demo; "
        "write_demo(sys.argv[1], copies=1, scenes=(8, 4))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "again"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert contents(tmp_path / "again") == contents(demo.classify.parent)
    assert "demo data" in run.stderr and not run.stdout


def test_folders_of_others_are_left_alone(demo: Demo, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="no demo data"):
        write_demo(mine)
    assert contents(mine) == {"thesis.tex": b"years of work"}
    with pytest.raises(OutputError, match="is a file"):
        write_demo(mine / "thesis.tex")
    with pytest.raises(OutputError, match="other demo data"):
        write_demo(demo.classify.parent, seed=1, copies=1, scenes=(8, 4))
    with pytest.raises(OutputError, match="cannot write"):
        write_demo(mine / "thesis.tex" / "deeper")


def test_impossible_counts(tmp_path: Path) -> None:
    for options in ({"copies": 0}, {"scenes": (0, 1)}, {"seed": -1}):
        with pytest.raises(ConfigError):
            write_demo(tmp_path / "demo", **options)
    assert not os.listdir(tmp_path)


def test_scikit_learn_is_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from metaformer.data.demo.write import write_demo\n"
        "from metaformer.errors import MissingPackage\n"
        "try: write_demo(sys.argv[1])\n"
        "except MissingPackage as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "demo"], capture_output=True, text=True, check=True
    )
    assert "scikit-learn" in run.stdout and "metaformer[demo]" in run.stdout
    assert not os.listdir(tmp_path)
