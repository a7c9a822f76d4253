"""Listing, exporting and quantizing models."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.bench import exports
from metaformer.bench.catalog import catalog
from metaformer.deploy.packaging.load import load_package
from metaformer.factory import create_model
from metaformer.mixers import MIXERS
from metaformer.recipes import RECIPES
from metaformer.weights.hub import save_pretrained
from metaformer.weights.keymap import from_ours
from metaformer.weights.sources import SOURCES

Cli = Callable[..., Any]
DOCS = Path(__file__).parents[2] / "docs"


def test_models_with_published_figures(cli: Cli) -> None:
    out = cli("list").out
    assert all(entry.name in out for entry in catalog())
    assert "cyclemlp_t: weights were published without code" in out
    rows = json.loads(cli("list", "caformer_b36", "--json").out)
    assert {row["top1"] for row in rows} == {85.5, 86.4, 87.4, 88.1, None}
    assert all(row["params"] == 98753614 for row in rows if row["classes"] == 1000)


def test_recipes_and_mixers(cli: Cli) -> None:
    assert {row["recipe"] for row in json.loads(cli("list", "--recipes", "--json").out)} == set(RECIPES)
    assert {row["mixer"] for row in json.loads(cli("list", "--mixers", "--json").out)} == set(MIXERS)
    assert "size=3" in cli("list", "--mixers", "pooling").out


@pytest.mark.parametrize(
    ("noun", "data", "metrics"),
    [("segmenter", "ade20k", ["miou"]), ("detector", "coco", ["box_ap", "mask_ap"])],
)
def test_dense_networks_with_published_figures(noun: str, data: str, metrics: list[str], cli: Cli) -> None:
    rows = json.loads(cli("list", f"--{noun}s", "--json").out)
    published = {name: source for name, source in SOURCES.items() if source.data == data}
    assert [row[noun] for row in rows] == list(published)
    for row in rows:
        figures = published[row[noun]].metrics
        assert row["params"] > 1e7 and [row[name] for name in metrics] == [
            figures.get(name) for name in metrics
        ]


def test_detectors_are_listed_by_pattern(cli: Cli) -> None:
    table = cli("list", "--detectors", "retinanet*s12").out
    assert "21.7M" in table and "36.2" in table and "mask_rcnn" not in table


@pytest.mark.parametrize("kind", ["--recipes", "--mixers", "--segmenters", "--detectors"])
def test_unknown_names_are_named(kind: str, cli: Cli) -> None:
    result = cli("list", kind, "nonsense")
    assert result.status == 1 and "'nonsense'" in result.error


def test_convert_prints_what_it_wrote(cli: Cli, tmp_path: Path) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(create_model("cyclemlp_b1").state_dict(), source)
    status, out, _ = cli("convert", source, target, "--to=cyclemlp")
    assert status == 0 and "cyclemlp_b1" in out and target.exists()


def test_the_documented_conversion_runs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PoolFormer-S12 and `metaformer_id_s12` store the same, so that one has to be named."""
    monkeypatch.chdir(tmp_path)
    state = from_ours(create_model("poolformer_s12").state_dict(), "poolformer")
    torch.save(state, "poolformer_s12.pth.tar")
    (command,) = re.findall(r"^metaformer (convert .*)", (DOCS / "models.md").read_text(), re.MULTILINE)
    helped = cli("convert", "--help").out
    for line in (command, *re.findall(r"^  metaformer (convert .*)", helped, re.MULTILINE)):
        status, out, err = cli(*line.split())
        assert status == 0 and "132 tensors of poolformer_s12" in out, err
    assert "name one (--model)" in cli(*command.partition(" --model")[0].split()).error


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("evaluate poolformer_n --data {pets}", "(--checkpoint, in training --model.checkpoint)"),
        ("evaluate poolformer_s12 --data {pets} --checkpoint {weights}", "does not fit the model"),
        ("evaluate poolformer_n --data {pets} --checkpoint {weights}", "name its 7 classes (--class-names)"),
        ("predict randformer_s12 {photo} --checkpoint {random} --class-names {names}", "another grid"),
        (
            "train finetune --data.root {pets} --out {out} --model.name poolformer_n",
            "--model.pretrained true",
        ),
    ],
)
def test_errors_name_options(line: str, named: str, cli: Cli, pets: Path, tmp_path: Path) -> None:
    """`error` refuses those that name arguments in Python."""
    weights, random = tmp_path / "weights.pth", tmp_path / "random.pth"
    torch.save(create_model("poolformer_n", num_classes=7).state_dict(), weights)
    if "{random}" in line:
        torch.save(create_model("randformer_s12", num_classes=3, image_size=(64, 64)).state_dict(), random)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    values = {"photo": next(pets.glob("val/*/*")), "names": tmp_path / "names.txt", "out": tmp_path / "run"}
    assert named in cli(*line.format(pets=pets, weights=weights, random=random, **values).split()).error


def test_bench_compares_models(cli: Cli, tmp_path: Path) -> None:
    args = ("bench", "poolformer_n", "--size=32", "--rounds=2", "--threads=1", "--by=stage")
    status, out, _ = cli(*args, "--against=cyclemlp_b1", f"--json={tmp_path / 'b.json'}")
    assert status == 0 and "times as fast as cyclemlp_b1" in out and "stages.2" in out
    values = json.loads((tmp_path / "b.json").read_text())
    assert len(values["ratios"]["poolformer_n"]["pairs"]) == 2 and values["machine"]["threads"] == 1
    counts = json.loads(cli("bench", "caformer_s18", "--counts", "--json=-").out)
    assert counts["models"][0]["params"] == 26341656
    assert "poolformer_n" in cli("bench", "poolformer_n", "--counts").out


def test_verify_offline_has_an_error_line_for_each_checkpoint(
    pets: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("metaformer.weights.download.ATTEMPTS", 1)
    status, out, err = cli("verify", "cyclemlp_*", f"--data={pets}")
    lines = out.splitlines()
    assert status == 1 and len(lines) == 5 and "Traceback" not in err
    assert all("error: https://" in line for line in lines)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3, "image_size": (64, 64)}
    save_pretrained(create_model("poolformer_s12", **tiny), tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize(
    ("file", "options", "named"),
    [
        ("net.zip", "", ".pt2"),
        ("net.pt2", "--sizes 20 64", "sizes that vary must begin at 35 pixels"),
        ("net.pt2", "--batch 4 2", "batch is 4 … 2"),
        ("net.pt2", "--sizes 64 96 --image-size 64", "--sizes and --image-size"),
    ],
)
def test_wrong_options_of_an_export_are_named(
    saved: Path, file: str, options: str, named: str, cli: Cli
) -> None:
    assert named in cli("export", saved, saved.parent / file, *options.split()).error
    assert [path.name for path in saved.parent.iterdir()] == ["net"]


@pytest.mark.slow
def test_a_file_is_written(saved: Path, cli: Cli) -> None:
    out = saved.parent / "net.pt2"
    result = cli("export", saved, out, "--batch", "1", "4", "--image-size", "96")
    assert result.status == 0 and "trusted=True" in result.out
    assert "1…4 images of 96×96 pixels, float32 on cpu" in result.out
    assert "compiling, which takes a minute" in result.err
    network = load_package(out, trusted=True)
    assert network.metadata["task"] == "classify" and network.metadata["preprocess"]["image_size"] == 96
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 3)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of pets."""
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (32, 32)}
    model = create_model("poolformer_s12", num_classes=3, **tiny)
    model.pretrained_cfg.update(label_names=["ant", "bee", "cat"], input_size=(3, 32, 32))
    directory = tmp_path_factory.mktemp("saved")
    save_pretrained(model, directory)
    return directory


def test_from_a_classifier_to_predictions(quantized: Path, pets: Path, cli: Cli, tmp_path: Path) -> None:
    out, file = tmp_path / "int8.xml", tmp_path / "report.json"
    result = cli("quantize", quantized, "--data", pets, "--out", out, "--json", file, "--rounds", 1)
    values = json.loads(file.read_text())
    assert result.status == 0 and "milliseconds an image" in result.out
    assert f"top1  {values['float32']['metrics']['top1']:>16.4f}" in result.out
    assert values["calibrated"] == 24 and set(values["speed"]["seconds"]) == {"1", "8"}
    result = cli("evaluate", out, "--data", pets, "--workers=0", "--device=cpu")
    assert result.status == 0 and f"top-1    {values['int8']['metrics']['top1']:.2%}" in result.out
    result = cli("predict", out, pets / "val", "--device=cpu")
    assert result.status == 0 and len(result.out.splitlines()) == 15


def test_accuracy_is_reported_where_speed_cannot_be_measured(
    quantized: Path, pets: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "WORKER", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    out, file = tmp_path / "int8.xml", tmp_path / "report.json"
    result = cli("quantize", quantized, "--data", pets, "--out", out, "--json", file)
    assert result.status == 1 and "top1" in result.out
    assert "speed of optimized" in result.error and "no torch here" in result.error
    values = json.loads(file.read_text())
    assert values["calibrated"] == 24 and "speed" not in values
    assert cli("predict", out, pets / "val", "--device=cpu").status == 0


def test_a_comparison_of_forms_names_wrong_options(cli: Cli, tmp_path: Path) -> None:
    assert "--rounds" in cli("bench", "exports", "poolformer_n", "--round", 3).error
    assert "nowhere" in cli("bench", "exports", tmp_path / "nowhere").error
    assert "rounds" in cli("bench", "exports", "poolformer_n", "--rounds", 0).error


@pytest.mark.parametrize(
    ("options", "status", "named"),
    [
        ("", 2, "--out"),
        ("--out OUT --rounds -1", 2, "--rounds -1"),
        ("--out OUT --images 1", 1, "images"),
        ("--out OUT", 1, ".onnx"),
    ],
)
def test_wrong_options_of_quantizing_are_named(
    options: str, status: int, named: str, cli: Cli, tmp_path: Path
) -> None:
    result = cli("quantize", "poolformer_n", *options.replace("OUT", str(tmp_path / "out")).split())
    assert result.status == status and named in result.error
