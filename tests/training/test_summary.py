"""What a run says at its start, and its first figure."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.tasks import TASKS
from metaformer.training.train import train
from toys import Configure, log_lines

SHORT = {"steps": 1, "warmup_steps": 0}


def test_a_run_says_what_it_starts_with(
    configure: Configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(configure(schedule=SHORT), tmp_path / "run").run
    error = capfd.readouterr().err
    (line,) = log_lines(run, "start")
    lines = line["note"].split("\n")
    assert all(one in error for one in lines)
    network, weights, training, validation, device = lines
    assert network.startswith("network: poolformer_n, ") and network.endswith(", 3 classes")
    assert weights == "weights: all random"
    assert training == "training: train, 24 images, 8 images of each class, 4 steps an epoch"
    assert validation == "validation: val, 15 images, 5 images of each class"
    assert device.removeprefix("device: cpu, 1 thread, float32; operations: ") not in ("", device)
    train(configure(schedule={"steps": 2, "warmup_steps": 0}), run, resume="auto")
    assert "weights: those of the checkpoint" in capfd.readouterr().err
    assert len(log_lines(run, "start")) == 1


def test_loaded_and_fresh_weights_are_told(
    configure_detect: Configure, classify_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure_detect(model={"checkpoint": str(classify_run)}, schedule=SHORT)
    train(config, tmp_path / "run")
    (line,) = [one for one in capfd.readouterr().err.splitlines() if one.startswith("weights: ")]
    assert str(classify_run) in line and "% of the network's values" in line
    assert line.endswith("fresh: backbone.norms, neck, rpn, box_head and 3 more")


def test_frozen_random_weights_are_warned_of(
    configure: Configure,
    configure_detect: Configure,
    classify_run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    frozen = {"freeze": 2}
    train(configure(model=frozen, schedule=SHORT), tmp_path / "random")
    (line,) = (one for one in capfd.readouterr().err.splitlines() if "warning: model.freeze" in one)
    assert "model.freeze 2 keeps random weights" in line and "model.checkpoint" in line
    loaded = {**frozen, "checkpoint": str(classify_run)}
    train(configure(model=loaded, schedule=SHORT), tmp_path / "trained")
    # a RetinaNet leaves out the first stage's features, and the norm of them, which is fresh, has no gradient
    train(configure_detect(model=loaded, detect={"head": "retinanet"}, schedule=SHORT), tmp_path / "detect")
    assert "warning: model.freeze" not in capfd.readouterr().err


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_tells_its_data(task: str, configure_task: Configure, tmp_path: Path) -> None:
    run = train(configure_task(task, schedule=SHORT), tmp_path / "run").run
    (line,) = log_lines(run, "start")
    training = line["note"].split("\n")[2]
    unit = {"detect": "objects of each class", "segment": "of the labeled pixels for each class"}
    assert unit.get(task, "images of each class") in training


def test_shares_of_pixels_are_told(labeled: Path, tmp_path: Path, configure_segment: Configure) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            file = labeled / f"annotations/{split}/{index}.png"
            values = np.full(np.array(Image.open(file)).shape, 255, dtype=np.uint8)
            values[0, :3], values[0, 3:5], values[1, :3] = 0, 1, 2
            values[2, :2] = 2
            Image.fromarray(values).save(file)
    config = configure_segment(
        data={"root": str(labeled), "batch_size": 4}, segment={"reduce_zero_label": None}, schedule=SHORT
    )
    (line,) = log_lines(train(config, tmp_path / "run").run, "start")
    training, validation = line["note"].split("\n")[2:4]
    shares = "20% (grass) to 50% (road) of the labeled pixels for each class"
    assert training == f"training: train, 4 images, {shares}, 1 steps an epoch"
    assert validation == f"validation: val, 2 images, {shares}"


def test_the_first_epoch_is_evaluated_however_seldom_the_others_are(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(schedule={"epochs": 5, "warmup_epochs": 0}, evaluate={"every": 3})
    run = train(config, tmp_path / "run").run
    assert [line["epoch"] for line in log_lines(run, "eval")] == [1, 3, 5]
