"""The tasks that the suite is run for: a new task is one more entry of `TASKS`."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Plain = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What a task's runs learn from, and how."""

    task: str
    recipe: str
    """A recipe whose settings `config` replaces."""
    write: Callable[[Path], None]
    """Makes the data below a folder: 24 training images, so that a batch of 6 makes 4 steps an epoch."""
    config: Plain
    """Epochs of 4 steps, a checkpoint of more than 20 MB each 2, everything random switched on."""
    image: str
    """The training image that the faults of workers happen at; part of its path."""
    index: int
    """Its place in the data."""

    def settings(self, data: Path, sections: Plain) -> Plain:
        """The case's configuration with some fields changed, section by section."""
        plain = copy.deepcopy(self.config)
        plain["data"]["root"] = str(data)
        for name, fields in sections.items():
            plain[name] = {**plain.get(name, {}), **fields}
        return plain


def colored_squares(root: Path) -> None:
    """Three classes of 8 images told apart by color, faintly: the best weights come step by step."""
    draw = np.random.RandomState(0)
    for split in ("train", "val"):
        for channel, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = draw.randint(0, 180, (36 + i, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 30 * (i + 1) // 8
                Image.fromarray(pixels).save(folder / f"{i}.png")


CLASSIFY = Case(
    "classify",
    "demo/classify",
    colored_squares,
    {
        "model": {
            "name": "poolformer_n",
            "overrides": {"depths": [1, 1, 1, 1], "dims": [64, 128, 192, 256]},
            "drop_path_rate": 0.2,
            "head_dropout": 0.2,
        },
        "data": {"image_size": 32, "batch_size": 6, "eval_batch_size": 4, "workers": 0},
        "augment": {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"},
        "optim": {"lr": 1e-3, "accumulate": 1, "clip": 1.0},
        "schedule": {"epochs": 15, "warmup_epochs": 1, "min_lr": 0.0, "cooldown_epochs": 0},
        "ema": {"decay": 0.9},
        "evaluate": {"every": 2},
        "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "save_every": 2, "keep": 2},
    },
    "bee/3.png",
    11,
)


def colored_tags(root: Path) -> None:
    """Images with a green square, a blue one, both or neither, and a CSV of the colors."""
    draw = np.random.RandomState(3)
    for split, count in (("train", 24), ("val", 12)):
        (root / split).mkdir(parents=True)
        lines = ["image,labels"]
        for i in range(count):
            pixels = draw.randint(0, 180, (36 + i % 8, 40, 3), dtype=np.uint8)
            names = [name for bit, name in enumerate(("green", "blue")) if i >> bit & 1]
            for name in names:
                channel = 1 if name == "green" else 2
                pixels[:18, 20 * channel - 20 : 20 * channel, channel] += 60
            Image.fromarray(pixels).save(root / split / f"{i:02d}.png")
            lines.append(f"{i:02d}.png,{' '.join(names)}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


MULTILABEL = Case(
    "multilabel",
    "demo/multilabel",
    colored_tags,
    {
        **CLASSIFY.config,
        "task": "multilabel",
        "augment": {"mixup": 0.0, "cutmix": 0.0, "erase": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"},
        "multilabel": {"loss": "asymmetric"},
    },
    "11.png",
    11,
)


def colored_patches(root: Path) -> None:
    """Images with a square of one of two colors on a third class, in ADE20K's layout."""
    draw = np.random.RandomState(1)
    for split, count in (("training", 24), ("validation", 6)):
        folders = [root / kind / split for kind in ("images", "annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(count):
            size = 36 + i % 8
            pixels = draw.randint(0, 180, (size, 40, 3), dtype=np.uint8)
            labels = np.zeros((size, 40), dtype=np.uint8)
            top, left = draw.randint(0, 16, 2)
            labels[top : top + 18, left : left + 20] = 1 + i % 2
            pixels[..., 1 + i % 2] += ((labels > 0) * 60).astype(np.uint8)
            for folder, array in zip(folders, (pixels, labels), strict=True):
                Image.fromarray(array).save(folder / f"{i:02d}.png")
    (root / "objectInfo150.txt").write_text("Idx\tName\n1\tgreen\n2\tblue\n")


SEGMENT = Case(
    "segment",
    "demo/segment",
    colored_patches,
    {
        "task": "segment",
        "model": {
            "name": "poolformer_n",
            "overrides": {"depths": [1, 1, 1, 1], "dims": [64, 128, 192, 256]},
            "drop_path_rate": 0.2,
        },
        "data": {"image_size": 32, "batch_size": 6, "workers": 0},
        "segment": {"fpn_dim": 32, "head_dim": 32, "dropout": 0.2, "resize": None, "size_divisor": 32},
        "optim": {"lr": 1e-3, "accumulate": 1, "clip": 1.0},
        "schedule": {"epochs": 15, "warmup_epochs": 1, "min_lr": 0.0, "cooldown_epochs": 0},
        "ema": {"decay": 0.9},
        "evaluate": {"every": 2},
        "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "save_every": 2, "keep": 2},
    },
    "11.png",
    11,
)


def colored_boxes(root: Path) -> None:
    """Images with a box of each of two colors, some of them crowds, in COCO's layout."""
    draw = np.random.RandomState(2)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 24), ("val", 6)):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for i in range(count):
            height, width = 36 + i % 8, 40 if i % 3 else 33
            pixels = draw.randint(0, 120, (height, width, 3), dtype=np.uint8)
            images.append({"id": i + 1, "file_name": f"{i:02d}.png", "width": width, "height": height})
            for label in range(2 if i % 4 else 1):
                left, top = draw.randint(0, 10, 2).tolist()
                box = [left + 2 * label, top + 6 * label, 18, 16]
                pixels[box[1] : box[1] + 16, box[0] : box[0] + 18, 1 + label] += 100
                corners = [(0, 0), (18, 0), (18, 16), (0, 16)]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": box,
                        "area": 288,
                        "iscrowd": 0,
                        "segmentation": [[side for x, y in corners for side in (box[0] + x, box[1] + y)]],
                    }
                )
            Image.fromarray(pixels).save(root / f"{split}2017" / f"{i:02d}.png")
        categories = [{"id": 1, "name": "green"}, {"id": 2, "name": "blue"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))


DETECT = Case(
    "detect",
    "demo/detect",
    colored_boxes,
    {
        "task": "detect",
        "model": {
            "name": "poolformer_n",
            "overrides": {"depths": [1, 1, 1, 1], "dims": [64, 128, 192, 256]},
            "drop_path_rate": 0.2,
        },
        "data": {"image_size": 64, "batch_size": 6, "workers": 0},
        "detect": {
            "head": "mask_rcnn",
            "fpn_dim": 32,
            "box_fc_dim": 64,
            "long_side": 80,
            "short_sides": [32, 48],
            "photometric": True,
        },
        "optim": {"lr": 1e-3, "accumulate": 1, "clip": 1.0},
        "schedule": {"name": "cosine", "epochs": 15, "warmup_epochs": 1, "min_lr": 0.0, "cooldown_epochs": 0},
        "ema": {"decay": 0.9},
        "evaluate": {"every": 2},
        "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "save_every": 2, "keep": 2},
    },
    "11.png",
    11,
)

TASKS = {case.task: case for case in (CLASSIFY, MULTILABEL, SEGMENT, DETECT)}
EPOCH = 4
"""Steps of an epoch."""
