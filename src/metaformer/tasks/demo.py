"""`metaformer data demo`: a demo data set for every task, for machines that can download nothing."""

import json
import sys
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from metaformer.data.demo import DemoFolder, DemoSize, SceneGenerator
from metaformer.errors import DataError, OutputError
from metaformer.storage import as_path, read_json
from metaformer.tasks import TASKS

MARKER: Final = "demo.json"


def write_demo_data(
    root: str | Path,
    seed: int = 0,
    *,
    per_class: int | None = None,
    copies: int = 4,
    scenes: tuple[int, int] = (600, 150),
    progress: bool = True,
) -> dict[Path, int]:
    """Write each task's demo data set to `root/TASK`; the same arguments give the same bytes.

    A fifth of the source digits of each class is used for validation only, in all of them. Files are written
    whole or not at all; running again mends what is missing or damaged and touches nothing else.

    Args:
        root: a new or empty folder, or one that this function wrote with the same arguments.
        seed: everything random is a function of it.
        per_class: source digits of each class, at least 5; all, about 180, when not given.
        copies: images per training digit of classification; validation digits are used once.
        scenes: training and validation images of the other tasks.
        progress: show bars on stderr.

    Returns:
        The data sets' folders, with how many images they hold.

    Raises:
        ConfigError: a number out of range.
        MissingPackage: scikit-learn is not installed.
        OutputError: the folder holds something else, or cannot be written to.
    """
    size, generator = DemoSize(copies, scenes), SceneGenerator(seed, per_class)
    root = as_path(root, "root", DataError, expand=True)
    settings = {"format": 1, "seed": seed, "per_class": per_class, "copies": copies, "scenes": list(scenes)}
    images: dict[Path, int] = {}
    try:
        _claim(root, settings)
        for task, spec in TASKS.items():
            with tqdm(desc=f"demo data: {task}", unit="image", file=sys.stderr, disable=not progress) as bar:
                folder = DemoFolder(root / task, bar)
                spec.write_demo(folder, generator, size)
            images[folder.root] = folder.images
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{error.filename or root}: cannot write demo data: {error.strerror}") from error
    return images


def _claim(root: Path, settings: dict[str, Any]) -> None:
    """Mark a folder as demo data of these settings.

    Raises:
        OutputError: it holds something else.
    """
    marker = root / MARKER
    if marker.is_file():
        try:
            found = read_json(marker)
        except DataError:
            found = "a damaged demo.json"
        if found != settings:
            raise OutputError(f"{root}: holds other demo data ({found}): choose another folder or delete it")
    elif root.exists() and not root.is_dir():
        raise OutputError(f"{root}: is a file: choose another folder")
    elif root.is_dir() and any(root.iterdir()):
        raise OutputError(f"{root}: holds files that are no demo data: choose a new or empty folder")
    else:
        DemoFolder(root).add_file(MARKER, (json.dumps(settings) + "\n").encode())
