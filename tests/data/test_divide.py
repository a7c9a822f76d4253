"""Class folders without splits, divided."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metaformer.cli import main
from metaformer.data.divide import divide, hold_out, open_divided, rarest_labels, write_splits
from metaformer.data.folder import ImageFolder
from metaformer.errors import ConfigError, DataError, OutputError
from metaformer.inference.evaluate import evaluate
from metaformer.tasks.base import Task
from metaformer.tasks.multilabel.dataset import open_multilabel
from metaformer.training.train import train
from toys import Configure, build_task, tiny_config, write_image_folder

COUNTS = {0: 50, 1: 11, 2: 2}
PATHS = [f"c{label}/p{i % 7}_{i:03d}.png" for label, count in COUNTS.items() for i in range(count)]
LABELS = [label for label, count in COUNTS.items() for _ in range(count)]


def test_each_class_gives_its_share_by_seed_and_path() -> None:
    held = hold_out(PATHS, LABELS, 0.2)
    shares = {label: sum(h for h, own in zip(held, LABELS, strict=True) if own == label) for label in COUNTS}
    assert shares == {0: 10, 1: 2, 2: 1}
    assert held == hold_out(PATHS, LABELS, 0.2) != hold_out(PATHS, LABELS, 0.2, seed=1)
    shuffled = sorted(range(len(PATHS)), key=lambda i: PATHS[i][::-1])
    again = hold_out([PATHS[i] for i in shuffled], [LABELS[i] for i in shuffled], 0.2)
    assert again == [held[i] for i in shuffled]


def test_groups_stay_together() -> None:
    held = hold_out(PATHS, LABELS, 0.3, group=r"p\d")
    sides = {(path.split("/")[1][:2], one) for path, one in zip(PATHS, held, strict=True)}
    assert len(sides) == 7
    assert sum(held) == pytest.approx(0.3 * len(PATHS), abs=len(PATHS) / 7)
    assert held == hold_out(PATHS, LABELS, 0.3, group=r"/(p\d)_")
    with pytest.raises(DataError, match=r"c0/p0_000\.png"):
        hold_out(PATHS, LABELS, 0.3, group="patient")
    with pytest.raises(ConfigError, match="regular expression"):
        hold_out(PATHS, LABELS, 0.3, group="(")
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="val_fraction"):
            hold_out(PATHS, LABELS, fraction)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Class folders without splits."""
    write_image_folder(tmp_path, {"flat": 10})
    return tmp_path / "flat"


def test_a_folder_is_written_in_splits(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["data", "split", str(flat), str(out), "--val-fraction", "0.2", "--test-fraction", "0.1"]
    assert main(args) == 0
    assert "21 images, 7 to 7 of each class" in capsys.readouterr().out
    parts = {split: ImageFolder(out, split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [21, 6, 3]
    names = [path.relative_to(out / split) for split, part in parts.items() for path in part.paths]
    assert sorted(names) == sorted(path.relative_to(flat) for path in ImageFolder(flat, "").paths)
    assert all(os.path.samefile(out / "train" / name, flat / name) for name in map(str, names)
               if (out / "train" / name).exists())  # fmt: skip
    assert main(args) != 0 and "not empty" in capsys.readouterr().err
    with pytest.raises(OutputError, match="in the data set"):
        write_splits(flat, flat / "splits")
    shutil.rmtree(flat / "ant")
    (flat / "ant").mkdir()
    shutil.copy(flat / "bee" / "0.png", flat / "ant")
    with pytest.raises(DataError, match=r"'ant' in (train|val)"):
        write_splits(flat, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_divides_its_data_itself(flat: Path, tmp_path: Path) -> None:
    config = tiny_config(
        "classify", flat, data={"val_fraction": 0.2}, schedule={"steps": 2, "warmup_steps": 0}, seed=3
    )
    run = train(config, tmp_path / "run").run
    held = open_divided(flat, "train", 0.2, 3)[1]
    report = evaluate(run, workers=0)
    assert report.images == len(held) == 6
    assert {example.path for example in report.examples} <= {str(path) for path in held.paths}
    assert evaluate(run, split="train", workers=0).images == 24
    with pytest.raises(DataError, match="val_fraction"):  # how to go on without splits
        train(tiny_config("classify", flat), tmp_path / "other")


def test_with_a_training_split_that_is_divided(own_pets: Path) -> None:
    shutil.rmtree(own_pets / "val")
    whole = ImageFolder(own_pets, "train")
    parts = open_divided(own_pets, "train", 0.25, 0)
    paths = [set(part.paths) for part in parts]
    assert paths[0] | paths[1] == set(whole.paths) and not paths[0] & paths[1]
    assert all(len(part.labels) == len(part) for part in parts)


def sources(task: Task) -> tuple[Any, Any]:
    """Training and validation data of a task."""
    return task.train.source, task.evaluation.loader.dataset.source


def names(source: Any) -> set[str]:
    return {source.path(index).name for index in range(len(source))}


@pytest.mark.parametrize("task", ["multilabel", "segment", "detect"])
def test_runs_of_the_other_tasks_divide_their_data(
    task: str, configure_task: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure_task(task, data={"val_fraction": 0.25}, seed=3)
    whole = names(sources(build_task(configure_task(task)))[0])
    training, held = sources(build_task(config))
    assert names(training) | names(held) == whole and len(training) + len(held) == len(whole) == 12
    assert len(held) in (3, 4) and training.classes == held.classes
    assert names(sources(build_task(config))[1]) == names(held)  # as a resumed run builds it
    other = configure_task(task, data={"val_fraction": 0.25}, seed=4)
    assert names(sources(build_task(other))[1]) != names(held)
    run = train(config, tmp_path / "run").run
    assert f"validation: held out of train, {len(held)} images" in capsys.readouterr().err
    report = evaluate(run, workers=0)
    assert report.images == len(held)
    assert {Path(one.path).name for one in report.examples} <= names(held)
    assert evaluate(run, split="train", workers=0).images == len(training)


@pytest.mark.parametrize("task", ["multilabel", "segment", "detect"])
def test_groups_stay_together_in_the_other_tasks(task: str, configure_task: Configure) -> None:
    fields = {"val_fraction": 0.25, "group": r"(\d)\.png"}  # 00 and 10, 01 and 11 belong together
    training, held = sources(build_task(configure_task(task, data=fields)))
    assert not {name[1] for name in names(training)} & {name[1] for name in names(held)}
    with pytest.raises(DataError, match="'patient'"):
        build_task(configure_task(task, data={**fields, "group": "patient"}))
    with pytest.raises(DataError, match=r"for validation.*groups"):
        build_task(configure_task(task, data={**fields, "group": "png"}))


def test_layouts_without_splits(tagged: Path, labeled: Path, blocks: Path, tmp_path: Path) -> None:
    shutil.copytree(tagged / "train", tmp_path / "tags")
    shutil.copy(tagged / "train.csv", tmp_path / "tags/labels.csv")
    for folder in ("images", "annotations"):
        shutil.copytree(labeled / folder / "train", tmp_path / "maps" / folder)
    shutil.copy(labeled / "classes.txt", tmp_path / "maps")
    shutil.copytree(blocks / "train2017", tmp_path / "cvat/images")
    (tmp_path / "cvat/annotations").mkdir()
    file = blocks / "annotations/instances_train2017.json"
    shutil.copy(file, tmp_path / "cvat/annotations/instances_default.json")
    for task, root, split, count, sections in (
        ("multilabel", "tags", ".", 12, {}),
        ("segment", "maps", ".", 4, {"segment": {"reduce_zero_label": None}, "data": {"batch_size": 2}}),
        ("detect", "cvat", "default", 12, {}),
    ):
        data = {"train": split, "val_fraction": 0.25, **sections.get("data", {})}
        config = tiny_config(task, tmp_path / root, **{**sections, "data": data})
        training, held = sources(build_task(config))
        assert len(training) + len(held) == count and held, root
        assert not names(training) & names(held)


def test_images_of_several_labels_are_divided_by_their_rarest() -> None:
    assert rarest_labels([0, 0, 1, 2, 2, 4], [7, 5, 7, 7, 5, 7], 6) == [5, 7, 5, -1, 7, -1]
    assert rarest_labels([0, 0], [3, 2], 1) == [2]


def test_groups_need_a_fraction(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.group"):
        train(tiny_config("classify", tmp_path, data={"group": "x"}), tmp_path / "run")


@pytest.mark.parametrize("root", ["labeled", "objects", "tagged"])
def test_splits_are_written_of_class_folders_alone(
    root: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "split", str(request.getfixturevalue(root)), str(tmp_path / "out")]) != 0
    assert "--data.val_fraction" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_validation_split_and_a_share_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.val.*data\.val_fraction"):
        train(tiny_config("classify", tmp_path, data={"val": "test", "val_fraction": 0.2}), tmp_path / "run")


def test_images_outside_the_data_set_are_divided(tmp_path: Path) -> None:
    rows = []
    for number in range(10):
        path = tmp_path / f"images/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        rows.append(f"{path},x y\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_text("image,labels\n" + "".join(rows))
    whole = open_multilabel(tmp_path / "data", "train")
    assert [len(part) for part in divide(whole, [0] * 10, 0.2, seed=0)] == [8, 2]


def test_folders_of_other_layouts_are_no_classes(tmp_path: Path) -> None:
    for folder in ("training/ant", "training/bee", "validation/ant", "validation/bee"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{number}.png")
    data = {"root": str(tmp_path), "val_fraction": 0.25}
    with pytest.raises(DataError, match=r"training, validation .*data\.train"):
        build_task(tiny_config("classify", tmp_path, data=data))
    task = build_task(tiny_config("classify", tmp_path, data={**data, "train": "training"}))
    assert task.classes == ("ant", "bee")


def test_a_data_set_that_has_changed_since_it_was_divided_is_told(
    configure: Configure, own_pets: Path, tmp_path: Path
) -> None:
    data = {"root": str(own_pets), "val_fraction": 0.25}
    run = train(configure(data=data, schedule={"epochs": 1}), tmp_path / "run").run
    assert evaluate(run, workers=0).images
    for number in range(40):
        shutil.copy(next((own_pets / "train/ant").glob("*.*")), own_pets / f"train/ant/new{number}.png")
    with pytest.raises(DataError, match=r"val_fraction"):
        evaluate(run, workers=0)
    with pytest.raises(DataError, match=r"val_fraction"):
        train(configure(data=data, schedule={"epochs": 2}), run, resume="auto")
    assert evaluate(run, own_pets, split="val", workers=0).images
