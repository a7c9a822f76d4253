"""Every recipe against a transcription of what was published, and against the models it names."""

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.errors import ConfigError, UnknownName
from metaformer.factory import create_model
from metaformer.recipes import RECIPES, find, load_recipe
from metaformer.training.check import check_config

FILES = {"imagenet": "published.json", "ade20k": "dense.json", "coco": "detection.json"}
PUBLISHED = {data: json.loads((Path(__file__).parent / file).read_text()) for data, file in FILES.items()}
RUNS = [run for published in PUBLISHED.values() for run in published["runs"]]
FIGURES = ("top1", "miou", "box_ap", "mask_ap")


def look_up(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return list(config) if isinstance(config, tuple) else config


def expected(run: str) -> dict[str, Any]:
    published = PUBLISHED[run.split("/")[0]]
    own = dict(published["runs"][run])
    return {**published["groups"][own.pop("group")], **own}


def test_every_published_run_has_a_recipe_and_no_other_claims_to_be_one() -> None:
    assert {name for name in RECIPES if name.startswith(tuple(f"{data}/" for data in FILES))} == set(RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_settings_are_the_published_ones(run: str) -> None:
    recipe, settings = RECIPES[run], expected(run)
    config = recipe()
    for figure in FIGURES:
        assert look_up(recipe, figure) == settings.pop(figure, None)
    assert {key: look_up(config, key) for key in settings} == settings
    data, _, name = run.partition("/")
    model = config.model.name
    match data:
        case "imagenet":
            assert name.removesuffix("_384") == model.split(".")[0]
        case "ade20k":
            assert name == f"{config.segment.head}_{model}"
        case "coco":
            assert name.removesuffix("_1x").removesuffix("_3x") == f"{config.detect.head}_{model}"
    check_config(replace(config, data=replace(config.data, root="somewhere")), world_size=8)


@pytest.mark.parametrize("run", RECIPES)
def test_the_model_builds(run: str) -> None:
    config = RECIPES[run]().model
    with torch.device("meta"):
        model = create_model(
            config.name.split(".")[0], num_classes=7, drop_path_rate=config.drop_path_rate,
            head_dropout=config.head_dropout,
        )  # fmt: skip
    assert model.num_classes == 7


@pytest.mark.parametrize("run", RECIPES)
def test_the_docstring_has_cost_command_and_result(run: str) -> None:
    recipe = RECIPES[run]
    text = recipe.__doc__ or ""
    assert f"train {run} --data.root" in text
    assert "Cost: " in text
    assert (recipe.top1 is not None) == run.startswith("imagenet/")
    assert any(getattr(recipe, figure) is not None for figure in FIGURES) == ("Published: " in text)
    assert ("torchrun" in text) == (run.split("/")[0] in FILES)


@pytest.mark.parametrize(
    ("run", "texts"),
    [
        ("imagenet/poolformer_s12", ["4e-4", "4e-3", "1024"]),
        ("imagenet/cyclemlp_b1", ["raw weights"]),
        (
            "coco/mask_rcnn_poolformer_s12_1x",
            ["box AP 37.3, AP50 59.0, AP75 40.1,", "mask AP 34.6, AP50 55.8", "a learning rate of 1e-4"],
        ),
        ("coco/retinanet_poolformer_s12_1x", ["small 20.8, medium 39.1, large 48.0"]),
    ],
)
def test_the_docstring_names_figures_and_disagreeing_sources(run: str, texts: list[str]) -> None:
    assert all(text in (RECIPES[run].__doc__ or "") for text in texts)


def test_settings_are_frozen_all_the_way_down() -> None:
    for recipe in RECIPES.values():
        nested = [getattr(recipe(), field.name) for field in fields(recipe())]
        for part in (recipe(), *filter(is_dataclass, nested)):
            assert part.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="imagenet/poolformer_s12"):
        find("imagenet/poolformer_s21")


def test_a_recipe_is_loaded_with_changes() -> None:
    assert load_recipe("finetune") == find("finetune")()
    config = load_recipe("finetune", {"optim.lr": "auto", "data.batch_size": 8, "seed": 3})
    assert (config.optim.lr, config.data.batch_size, config.seed) == ("auto", 8, 3)
    assert config.schedule == find("finetune")().schedule
    assert load_recipe("finetune", {"optim": {"lr": 0.5}}) == load_recipe("finetune", {"optim.lr": 0.5})
    for changes, named in (
        ({"optim.rate": 1.0}, r"optim\.rate|'rate'"),
        ({"nothing.lr": 1.0}, "nothing"),
        ({"optim.lr.x": 1.0}, "lr"),
        ({"optim.lr": []}, "lr"),
    ):
        with pytest.raises(ConfigError, match=named):
            load_recipe("finetune", changes)
