"""`metaformer predict` and `metaformer evaluate`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import metaformer
from metaformer.cli.options import options_of
from metaformer.inference.evaluate import task_options
from metaformer.tasks import TASKS

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of one file name, and an animation."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.RandomState(0)
    for name, size in (("a/x.png", (40, 30)), ("b/x.jpg", (33, 65))):
        (root / name).parent.mkdir()
        Image.fromarray(draw.randint(0, 255, (size[1], size[0], 3), np.uint8)).save(root / name)
    frames = [Image.fromarray(draw.randint(0, 255, (20, 24, 3), np.uint8)) for _ in range(3)]
    frames[0].save(root / "clip.gif", save_all=True, append_images=frames[1:], duration=80)
    return root


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


SIZES = [(40, 30, None), (33, 65, None), (24, 20, 0), (24, 20, 1), (24, 20, 2)]
"""Width, height and frame number of the photos."""


# --- classification


def test_evaluate_prints_and_writes_a_report(run: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    status, out, _ = cli("evaluate", run, "--workers=0", f"--json={file}")
    assert status == 0 and "top-1" in out and "bee" in out
    report = json.loads(file.read_text())
    assert report["images"] == 15 and report["top1"] > 0.6, "three plain colors are learned in a few steps"
    status, more, _ = cli("evaluate", run, "--workers=0", "--flip", "--crops=5", "--image-size=64")
    assert status == 0 and more != out


def test_evaluate_on_a_class_subset_and_real_labels(run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("ant\nbee\n")
    status, out, _ = cli("evaluate", run, "--workers=0", f"--class-subset={tmp_path / 'two.txt'}")
    assert status == 0 and "images   10" in out
    (tmp_path / "real.json").write_text(json.dumps([[0, 1, 2]] * 15))
    status, out, _ = cli("evaluate", run, "--workers=0", f"--real-labels={tmp_path / 'real.json'}")
    assert status == 0 and "ReaL     100.00%" in out


def test_classes_are_printed_or_written(run: Path, pets: Path, cli: Cli, tmp_path: Path) -> None:
    inputs = (pets / "val" / "ant", f"{pets}/val/bee/*.png")
    status, out, _ = cli("predict", run, *inputs)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(lines) == 10 and set(lines[0]["labels"]) == {"ant", "bee", "cat"}
    for name in ("found.csv", "found.jsonl", "folder"):
        assert cli("predict", run, *inputs, f"--out={tmp_path / name}", "--top-k=1").status == 0
        assert (tmp_path / name).exists()
    assert (tmp_path / "found.csv").read_text().count("\n") == 11
    assert cli("predict", run, inputs[0], f"--out={tmp_path / 'drawn'}", "--draw").status == 0
    assert len(list((tmp_path / "drawn" / "images").iterdir())) == 5


def test_a_model_by_name_takes_the_weights_beside_it(photos: Path, cli: Cli, tmp_path: Path) -> None:
    file, image = tmp_path / "weights.safetensors", photos / "a/x.png"
    torch.manual_seed(0)
    save_file(metaformer.create_model("poolformer_n").state_dict(), file)
    result = cli("predict", "poolformer_n", image, "--checkpoint", file, "--device=cpu")
    (expected,) = metaformer.Predictor("poolformer_n", file, device="cpu")(image)
    assert result.status == 0 and json.loads(result.out)["labels"] == list(expected.labels)


# --- segmentation


def test_label_maps_and_all_other_outputs(
    untrained: dict[str, Path], photos: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--device=cpu", "--draw", "--panoptic", "--rle", "--scales=0.5,1", "--flip")
    result = cli("predict", untrained["segment"], photos, "--out", out, *options)
    assert result.status == 0 and len(result.out.splitlines()) == 4
    assert all(line.startswith("5 ") for line in result.out.splitlines())
    names = ["x", "x_2", "clip_000000", "clip_000001", "clip_000002"]
    assert sorted(file.stem for file in (out / "masks").iterdir()) == sorted(names)
    lines = json_lines(out / "predictions.jsonl")
    assert [(line["width"], line["height"], line.get("frame")) for line in lines] == SIZES
    with Image.open(out / "masks" / "x_2.png") as mask:
        assert mask.mode == "P" and mask.size == (33, 65) and np.asarray(mask).max() < 11
    with Image.open(out / "images" / "clip.webp") as clip:
        assert clip.n_frames == 3  # type: ignore[attr-defined]


def test_shares_of_classes_are_printed(untrained: dict[str, Path], photos: Path, cli: Cli) -> None:
    result = cli("predict", untrained["segment"], photos / "a/x.png", "--sliding-window", "64")
    (line,) = result.out.splitlines()
    assert sum(json.loads(line)["classes"].values()) == pytest.approx(1) and "mask" not in line


def test_a_submission_is_a_zip(untrained: dict[str, Path], photos: Path, cli: Cli, tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--submission", "ade20k")
    assert cli("predict", untrained["segment"], photos / "a", *options).status == 0
    assert (tmp_path / "submission_ade20k.zip").is_file()
    assert cli("predict", untrained["segment"], photos, *options).status == 1  # two images of one name


# --- detection


def test_objects_and_all_other_outputs(
    untrained: dict[str, Path], photos: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--device=cpu", "--draw", "--coco", "--score=0", "--scales=0.5,1", "--flip")
    result = cli("predict", untrained["detect"], photos, "--out", out, *options)
    assert result.status == 0 and len(result.out.splitlines()) == 3
    assert all(line.startswith("5 ") for line in result.out.splitlines())
    lines, rows = json_lines(out / "predictions.jsonl"), json.loads((out / "coco.json").read_text())
    assert [(line["width"], line["height"], line.get("frame")) for line in lines] == SIZES
    assert len(rows) == sum(len(line["objects"]) for line in lines) > 0
    sizes = {line["image_id"]: [line["height"], line["width"]] for line in lines}
    state = json.loads((untrained["detect"] / "state.json").read_text())
    assert len(sizes) == 5 and {row["category_id"] for row in rows} <= set(state["card"]["category_ids"])
    assert all(row["segmentation"]["size"] == sizes[row["image_id"]] for row in rows)
    drawn = {file.name for file in (out / "images").iterdir()}
    assert {"x.jpg", "x_2.jpg", "clip.webp"} <= drawn


def test_objects_are_printed_by_score_and_class(untrained: dict[str, Path], photos: Path, cli: Cli) -> None:
    def objects(*options: str) -> list[dict[str, Any]]:
        result = cli("predict", untrained["detect"], photos / "a/x.png", "--device=cpu", *options)
        (line,) = result.out.splitlines()
        found: list[dict[str, Any]] = json.loads(line)["objects"]
        return found

    every = objects("--score=0")
    names = sorted({one["name"] for one in every})[:2]
    assert every and not objects("--score=1")
    assert objects("--score=0", f"--classes={','.join(names)}") == [o for o in every if o["name"] in names]
    assert objects() == [one for one in every if one["score"] >= 0.3]


# --- all tasks


@pytest.mark.parametrize(
    ("task", "options", "named"),
    [
        ("segment", "--scales 1,x", "--scales '1,x'"),
        ("segment", "--scales 0", "scales"),
        ("segment", "--workers -1", r"workers\b.*\-1"),
        ("segment", "--draw", "--draw needs --out"),
        ("segment", "--rle", "--rle needs --out"),
        ("segment", "--out OUT.csv", r"out\.csv"),
        ("segment", "--out OUT --fps 5", "fps"),
        ("segment", "--out OUT --draw --fps 0", r"fps\b.*0"),
        ("segment", "--out OUT --submission voc", "--submission: invalid choice: 'voc'"),
        ("detect", "--score 1.5", r"score\b.*1\.5"),
        ("detect", "--score much", "--score: invalid float value: 'much'"),
        ("detect", "--classes 1,tow", "'tow'"),
        ("detect", "--classes 1,,2", "--classes '1,,2'"),
        ("detect", "--coco", "--coco needs --out"),
        ("detect", "--draw", "--draw needs --out"),
        ("detect", "--out OUT --fps 5", "fps"),
        ("detect", "--out OUT --draw --fps 0", r"fps\b.*0"),
        ("detect", "--out OUT.jsonl", r"out\.jsonl"),
        ("detect", "--out OUT.json", r"out\.json"),
        ("classify", "--out OUT.json", r"out\.json"),
        ("classify", "--crops 2", r"crops\b.*2"),
        ("classify", "--top-k many", "--top-k: invalid int value: 'many'"),
        ("classify", "--optimize --amp bf16", "--amp"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(
    task: str, options: str, named: str, untrained: dict[str, Path], photos: Path, cli: Cli, tmp_path: Path
) -> None:
    args = options.replace("OUT", str(tmp_path / "out")).split()
    assert re.search(named, cli("predict", untrained[task], photos / "a", *args).error)
    assert not list(tmp_path.iterdir())


VALUES = {str: ";", int: "5", float: "0.5", Path: "x", list[float]: "1", list[str]: "a"}
"""A value for each type of an option; a flag needs none."""


@pytest.mark.parametrize("field", ["predictor", "write", "evaluation"])
@pytest.mark.parametrize("task", TASKS)
def test_options_of_other_tasks_are_named_with_both_tasks(
    task: str, field: str, untrained: dict[str, Path], photos: Path, cli: Cli, tmp_path: Path
) -> None:
    command = ("predict", untrained[task], photos / "a", "--out", tmp_path / "out")
    if field == "evaluation":
        command = ("evaluate", untrained[task])
    title = TASKS[task].title
    for name, specs in task_options(field).items():
        titles = [spec.title for spec in specs]
        if title in titles:
            continue
        options = options_of(getattr(specs[0], field))
        kind = next(option.kind for option in options if option.name == name)
        value = () if kind is bool else (kind[0] if isinstance(kind, tuple) else VALUES[kind],)
        flag = f"--{name.replace('_', '-')}"
        result = cli(*command, flag, *value)
        assert result.status == 1 and f"error: {flag}: " in result.error, result
        assert all(one in result.error for one in (title, *titles)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_a_whole_data_set_is_for_tasks_that_predict_in_batches(
    task: str, untrained: dict[str, Path], demo: Path, cli: Cli, tmp_path: Path
) -> None:
    result = cli("predict", untrained[task], "--data", demo / "classify", "--out", tmp_path / "out")
    if result.status:
        assert TASKS[task].title in result.error and not list(tmp_path.rglob("*.jsonl"))
    else:
        assert list((tmp_path / "out").glob("part-*.jsonl"))


@pytest.mark.parametrize("task", TASKS)
def test_the_optimized_network_gives_the_same_results(
    task: str, untrained: dict[str, Path], photos: Path, cli: Cli
) -> None:
    def results(*options: str) -> Any:
        result = cli("predict", untrained[task], photos / "a/x.png", "--device=cpu", *options)
        return json.loads(result.out, parse_float=lambda number: round(float(number), 3))

    assert results() == results("--optimize")


# --- images that cannot be read


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("bad", [["c.png"], ["c.png", "d.png"], ["a.png", "e.gif"]])
def test_one_bad_image_loses_nothing_else(
    task: str, bad: list[str], untrained: dict[str, Path], cli: Cli, tmp_path: Path
) -> None:
    photos, draw = tmp_path / "photos", np.random.RandomState(0)
    photos.mkdir()
    names = ["a.png", "b.png", "c.png", "d.png", "e.gif", "f.png"]
    for name in names:
        Image.fromarray(draw.randint(0, 255, (40, 40, 3), np.uint8)).save(photos / name)
    for name in bad:
        (photos / name).write_bytes(b"no image")

    def predicted(folder: str) -> list[str]:
        return [Path(line["path"]).name for line in json_lines(tmp_path / folder / "predictions.jsonl")]

    run = ("predict", untrained[task], photos, "--device=cpu", "--batch-size=2")
    status, _, error = cli(*run, f"--out={tmp_path / 'error'}")
    before = names[: names.index(bad[0])]
    assert status != 0 and bad[0] in error and "--on-bad-image skip" in error
    assert f"{len(before)} predictions before it" in error and predicted("error") == before
    status, _, error = cli(*run, f"--out={tmp_path / 'skip'}", "--on-bad-image=skip")
    assert status == 0 and f"left out {len(bad)} images" in error and all(name in error for name in bad)
    assert predicted("skip") == [name for name in names if name not in bad]
