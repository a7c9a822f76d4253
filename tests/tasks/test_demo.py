import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.data.demo import SPLITS
from metaformer.data.folder import ImageFolder
from metaformer.errors import ConfigError, MissingPackage, OutputError
from metaformer.tasks import TASKS
from metaformer.tasks.demo import OVERVIEW, write_demo_data
from warm import python


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_validation_digits_are_held_out_in_every_task(demo: Path) -> None:
    held_out = {int(path.stem[5:9]) for path in ImageFolder(demo / "classify", "val").paths}
    sources = json.loads((demo / "segment/sources.json").read_text())
    used: dict[str, set[int]] = {}
    for split in SPLITS:
        document = json.loads((demo / f"detect/annotations/instances_{split}2017.json").read_text())
        used[split] = {digit for name, digits in sources.items() if f"_{split}_" in name for digit in digits}
        used[split] |= {annotation["source"] for annotation in document["annotations"]}
    assert used["val"] <= held_out
    assert used["train"] and not used["train"] & held_out


def test_the_overview_shows_images_of_every_task(demo: Path) -> None:
    overview = np.asarray(Image.open(demo / OVERVIEW).convert("L"))
    rows = np.array_split(overview[2:-2], len(TASKS))
    assert all((row[:, :120] < 250).mean() > 0.9 for row in rows)


def test_writing_again_restores_missing_files_only(demo: Path, tmp_path: Path) -> None:
    before = contents(demo)
    demo = shutil.copytree(demo, tmp_path / "demo")
    victim = demo / "classify/val/3"
    lost = sorted(victim.iterdir())
    lost[0].unlink()
    lost[1].write_bytes(b"damaged")
    times = {path: path.stat().st_mtime_ns for path in (demo / "classify/train/0").iterdir()}
    images = write_demo_data(demo, copies=1, scenes=(8, 4), progress=False)
    assert images.keys() == {demo / task for task in TASKS}
    assert images[demo / "classify"] == 1797 and images[demo / "segment"] == images[demo / "detect"] == 12
    assert contents(demo) == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_same_arguments_same_bytes_in_another_process(demo: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from metaformer.tasks.demo import write_demo_data; "
        "write_demo_data(sys.argv[1], copies=1, scenes=(8, 4))"
    )
    args = [*python(), "-W", "error", "-c", code, tmp_path / "again"]
    run = subprocess.run(args, capture_output=True, text=True, check=True)
    assert contents(tmp_path / "again") == contents(demo)
    assert "demo data" in run.stderr and not run.stdout


def test_folders_of_others_are_left_alone(demo: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="no demo data"):
        write_demo_data(mine)
    assert contents(mine) == {"thesis.tex": b"years of work"}
    with pytest.raises(OutputError, match="is a file"):
        write_demo_data(mine / "thesis.tex")
    with pytest.raises(OutputError, match="other demo data"):
        write_demo_data(demo, seed=1, copies=1, scenes=(8, 4))
    with pytest.raises(OutputError, match="cannot write"):
        write_demo_data(mine / "thesis.tex" / "deeper")


@pytest.mark.parametrize(
    ("field", "value"), [("copies", 0), ("scenes", (0, 1)), ("seed", -1), ("per_class", 4)]
)
def test_values_out_of_range(tmp_path: Path, field: str, value: int | tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=field):
        write_demo_data(tmp_path / "demo", **{field: value})
    assert not os.listdir(tmp_path)


def test_scikit_learn_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackage, match=r"scikit-learn.*metaformer\[demo\]"):
        write_demo_data(tmp_path / "demo")
    assert not os.listdir(tmp_path)
