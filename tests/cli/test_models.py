"""`metaformer list`, `convert` and `bench`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.bench.catalog import catalog
from metaformer.factory import create_model
from metaformer.mixers import MIXERS
from metaformer.recipes import RECIPES
from metaformer.weights.keymap import from_ours

Cli = Callable[..., Any]
DOCS = Path(__file__).parents[2] / "docs"
DETECTORS = [
    ("retinanet_poolformer_s12.sail_coco_1x", 21.7, 36.2, None),
    ("retinanet_poolformer_s24.sail_coco_1x", 31.1, 38.9, None),
    ("retinanet_poolformer_s36.sail_coco_1x", 40.6, 39.5, None),
    ("mask_rcnn_poolformer_s12.sail_coco_1x", 31.6, 37.3, 34.6),
    ("mask_rcnn_poolformer_s24.sail_coco_1x", 41.0, 40.1, 37.0),
    ("mask_rcnn_poolformer_s36.sail_coco_1x", 50.5, 41.0, 37.7),
]


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


def test_segmenters_and_detectors_with_published_figures(cli: Cli) -> None:
    rows = json.loads(cli("list", "--segmenters", "--json").out)
    assert [row["miou"] for row in rows] == [37.07, 40.36, 41.81, 42.35, 42.76]
    rows = json.loads(cli("list", "--detectors", "--json").out)
    listed = [(r["detector"], round(r["params"] / 1e6, 1), r["box_ap"], r["mask_ap"]) for r in rows]
    assert listed == DETECTORS
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
        ("evaluate poolformer_n --data {pets}", "(--checkpoint)"),
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
