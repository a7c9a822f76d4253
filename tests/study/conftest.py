"""For tests of studies: a tiny one that is done, and plans of others."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metaformer.serialize import from_dict
from metaformer.study.execute import run_study
from metaformer.study.plan import Plan
from metaformer.study.study_dir import Study
from toys import TINY, shared, write_image_folder

PLAN: dict[str, Any] = {
    "question": "Does a learned window help on three colors?",
    "data": {"root": ""},
    "recipe": "finetune",
    "overrides": {
        "data": {"image_size": 32, "batch_size": 6, "eval_batch_size": 8, "workers": 0},
        "augment": {"auto_augment": None, "scale": [0.5, 1.0]},
        "schedule": {"warmup_epochs": 0, "min_lr": 0.0},
        "runtime": {"device": "cpu", "threads": 1},
    },
    "skeleton": {"model": "poolformer_n", "overrides": TINY},
    "mixers": {"pooling": "pooling", "window": "dwconv"},
    "baseline": "pooling",
    "budget": {"match": "none"},
    "learning_rates": [0.003, 1e30],
    "fewer_rates": "a test",
    "sweep_seeds": [100],
    "seeds": [0, 1],
    "purpose": "pilot",
    "smallest_effect": 1.0,
    "epochs": 1,
    "controls": ["repeat"],
}
"""A plan of seven runs that take a second each; at the second learning rate all fail."""
MakePlan = Callable[..., Plan]


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all results and predictions of a study."""
    files = (*folder.glob("results/*.json"), *folder.glob("predictions/*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def plan_values(root: Path, **changes: Any) -> dict[str, Any]:
    """Fields of the tiny plan with some replaced."""
    return {**copy.deepcopy(PLAN), "data": {"root": str(root)}, **changes}


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder of three classes that differ in color, in three splits."""
    return shared(write_image_folder(tmp_path_factory.mktemp("colors"), {"train": 6, "val": 4, "test": 5}))


@pytest.fixture
def make_plan(colors: Path) -> MakePlan:
    """The tiny plan with some fields replaced."""
    return lambda **changes: from_dict(Plan, plan_values(colors, **changes))


@pytest.fixture
def write_plan(colors: Path, tmp_path: Path) -> Callable[..., Path]:
    """The same as a file."""

    def write(name: str = "plan.yaml", **changes: Any) -> Path:
        file = tmp_path / name
        file.write_text(yaml.safe_dump(plan_values(colors, **changes), sort_keys=False))
        return file

    return write


@pytest.fixture(scope="session")
def done(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study of the tiny plan; not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan_values(colors)))
    torch.set_num_threads(1)
    study = run_study(folder / "plan.yaml", folder / "out")
    shared(folder)
    return study
