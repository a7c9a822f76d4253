"""Tasks that the suite runs for: a new task is one more row of `TASKS`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toys import Block, Scene, square_pair, write_ade20k, write_coco, write_image_folder, write_tags

Plain = dict[str, Any]

COMMON: Plain = {
    "model": {
        "name": "poolformer_n",
        "overrides": {"depths": [1, 1, 1, 1], "dims": [64, 128, 192, 256]},
        "drop_path_rate": 0.2,
    },
    "data": {"image_size": 32, "batch_size": 6, "workers": 0},
    "optim": {"lr": 1e-3, "accumulate": 1, "clip": 1.0},
    "schedule": {"epochs": 15, "warmup_epochs": 1, "min_lr": 0.0, "cooldown_epochs": 0},
    "ema": {"decay": 0.9},
    "evaluate": {"every": 2},
    "runtime": {"device": "cpu", "log_every": 1, "threads": 1, "save_every": 2, "keep": 2},
}
"""Epochs of 4 steps, a checkpoint of more than 20 MB every 2 steps; tasks add what is random in them."""
EPOCH = 4
"""Steps of an epoch."""


@dataclass(frozen=True)
class Case:
    """Data set and configuration of a task's runs."""

    task: str
    write: Callable[[Path], None]
    """Writes a data set of 24 training images: 4 steps an epoch in batches of 6."""
    image: str
    """Training image at which data workers fail: end of its path."""
    index: int
    """Its index in the data set."""
    own: Plain
    """What the task adds to the sections of `COMMON`."""

    @property
    def recipe(self) -> str:
        """Recipe that the configuration is applied to."""
        return f"demo/{self.task}"

    def settings(self, data: Path, sections: Plain) -> Plain:
        """The configuration for a data set, with some fields changed."""
        plain = copy.deepcopy(COMMON)
        for name, fields in [*self.own.items(), *sections.items()]:
            plain[name] = {**plain.get(name, {}), **fields}
        plain["data"]["root"] = str(data)
        return {"task": self.task, **plain}


def faint_colors(root: Path) -> None:
    """Three classes of 8 images whose colors differ faintly: the best weights improve step by step."""
    write_image_folder(root, {"train": 8, "val": 8}, noise=180, color=lambda i: 30 * (i + 1) // 8)


def faint_tags(root: Path) -> None:
    """Images with a green square, a blue one, both or neither, and a CSV of the colors."""
    random = np.random.RandomState(3)
    for split, count in (("train", 24), ("val", 12)):
        images = []
        for i in range(count):
            pixels = random.randint(0, 180, (36 + i % 8, 40, 3), dtype=np.uint8)
            names = [name for bit, name in enumerate(("green", "blue")) if i >> bit & 1]
            for name in names:
                channel = 1 if name == "green" else 2
                pixels[:18, 20 * channel - 20 : 20 * channel, channel] += 60
            images.append((pixels, names))
        write_tags(root, split, images)


def faint_patches(root: Path) -> None:
    """Images with a square of one of two colors, in ADE20K's layout."""
    random = np.random.RandomState(1)
    pairs = {
        split: [square_pair(i, random, (36 + i % 8, 40), 180, (18, 20), 60) for i in range(count)]
        for split, count in (("training", 24), ("validation", 6))
    }
    write_ade20k(root, pairs, ("green", "blue"))


def faint_boxes(root: Path) -> None:
    """Images with a box of one or both of two colors, in COCO's layout."""
    random = np.random.RandomState(2)
    for split, count in (("train2017", 24), ("val2017", 6)):
        scenes: list[Scene] = []
        for i in range(count):
            pixels = random.randint(0, 120, (36 + i % 8, 40 if i % 3 else 33, 3), dtype=np.uint8)
            blocks = []
            for label in range(2 if i % 4 else 1):
                left, top = random.randint(0, 10, 2).tolist()
                left, top = left + 2 * label, top + 6 * label
                pixels[top : top + 16, left : left + 18, 1 + label] += 100
                blocks.append(Block(label, (left, top, 18, 16)))
            scenes.append((pixels, blocks))
        write_coco(root, split, scenes, {"green": 1, "blue": 2}, range(1, count + 1))


TASKS = {
    case.task: case
    for case in (
        Case(
            "classify",
            faint_colors,
            "bee/3.png",
            11,
            {
                "model": {"head_dropout": 0.2},
                "data": {"eval_batch_size": 4},
                "augment": {
                    "mixup": 0.8, "cutmix": 1.0, "erase": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1",
                },
            },
        ),
        Case(
            "multilabel",
            faint_tags,
            "11.png",
            11,
            {
                "model": {"head_dropout": 0.2},
                "data": {"eval_batch_size": 4},
                "augment": {
                    "mixup": 0.0, "cutmix": 0.0, "erase": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1",
                },
                "optim": {"lr": 1e-4},  # so that the second evaluation is better than the first
                "multilabel": {"loss": "asymmetric"},
            },
        ),
        Case(
            "segment",
            faint_patches,
            "11.png",
            11,
            {
                "segment": {
                    "fpn_dim": 32, "head_dim": 32, "dropout": 0.2, "resize": None, "size_divisor": 32,
                },
            },
        ),
        Case(
            "detect",
            faint_boxes,
            "11.png",
            11,
            {
                "data": {"image_size": 64},
                "optim": {"lr": 1e-4},  # so that each evaluation is better than the one before
                "detect": {
                    "head": "mask_rcnn", "fpn_dim": 32, "box_fc_dim": 64, "long_side": 80,
                    "short_sides": [32, 48], "photometric": True,
                },
            },
        ),
    )
}  # fmt: skip
