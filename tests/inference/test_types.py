"""What type checkers know of `create_model`, `Predictor` and results."""

import subprocess
import sys
from pathlib import Path

USES = """
from pathlib import Path
from typing import Any, assert_type

from PIL import Image

from metaformer import MetaFormer, MetaFormerFeatures, Predictor, create_model
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.multilabel.results import MultilabelResult
from metaformer.tasks.segmentation.results import Segmentation


def networks(either: bool) -> None:
    assert_type(create_model("poolformer_s12"), MetaFormer)
    assert_type(create_model("poolformer_s12", features_only=False, depths=(1, 1, 1, 1)), MetaFormer)
    assert_type(create_model("poolformer_s12", features_only=True, out_indices=(3,)), MetaFormerFeatures)
    assert_type(create_model("poolformer_s12", features_only=either), MetaFormer | MetaFormerFeatures)


def results() -> None:
    assert_type(Predictor("run", task="classify")("a.jpg"), list[Classification])
    assert_type(Predictor("run", task="multilabel")("a.jpg"), list[MultilabelResult])
    assert_type(Predictor("run", task="segment")("a.jpg"), list[Segmentation])
    (found,) = Predictor("run", task="detect", score=0.5)("a.jpg")
    assert_type(found, DetectedObjects)
    assert_type(found.plot(), Image.Image)
    assert_type(found.save("a.png"), Path)
    assert_type(Predictor("run")("a.jpg"), list[Any])


def wrong() -> None:
    Predictor("run", task="detection")  # refused
    create_model("poolformer_s12").out_indices = (1,)
"""


def test_types_are_one_for_each_task(tmp_path: Path) -> None:
    file = tmp_path / "uses.py"
    file.write_text(USES)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--strict", str(file)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    own = [line for line in done.stdout.splitlines() if "uses.py" in line and ": error: " in line]
    lines = {int(line.split("uses.py:")[1].split(":")[0]) for line in own}
    refused = {
        n
        for n, text in enumerate(USES.splitlines(), 1)
        if n > USES.splitlines().index("def wrong() -> None:") + 1
    }
    assert lines == refused, done.stdout + done.stderr
