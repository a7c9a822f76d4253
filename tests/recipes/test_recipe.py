"""Every recipe against a transcription of what was published, and against the models it names."""

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.errors import UnknownName
from metaformer.factory import create_model
from metaformer.recipes import RECIPES, find
from metaformer.training.check import check

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())


def look_up(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return list(config) if isinstance(config, tuple) else config


def expected(run: str) -> dict[str, Any]:
    own = dict(PUBLISHED["runs"][run])
    return {**PUBLISHED["groups"][own.pop("group")], **own}


def test_every_published_run_has_a_recipe_and_no_other_claims_to_be_one() -> None:
    assert {name for name in RECIPES if name.startswith("imagenet/")} == set(PUBLISHED["runs"])


@pytest.mark.parametrize("run", PUBLISHED["runs"])
def test_settings_are_the_published_ones(run: str) -> None:
    recipe, settings = RECIPES[run], expected(run)
    assert recipe.top1 == settings.pop("top1")
    assert {key: look_up(recipe(), key) for key in settings} == settings
    assert recipe().model.name.split(".")[0] == run.removeprefix("imagenet/").removesuffix("_384")


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
def test_the_docstring_says_cost_and_command_and_result(run: str) -> None:
    recipe = RECIPES[run]
    text = recipe.__doc__ or ""
    assert f"train {run} --data.root" in text
    assert "Cost: " in text
    assert (recipe.top1 is not None) == run.startswith("imagenet/")
    figures = (recipe.top1, recipe.miou, recipe.box_ap, recipe.mask_ap)
    assert any(figure is not None for figure in figures) == ("Published: " in text)
    assert ("torchrun" in text) == run.startswith(("imagenet/", "ade20k/", "coco/"))


def test_settings_are_frozen_all_the_way_down() -> None:
    for recipe in RECIPES.values():
        nested = [getattr(recipe(), field.name) for field in fields(recipe())]
        for part in (recipe(), *filter(is_dataclass, nested)):
            assert part.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_disagreeing_sources_are_named() -> None:
    text = RECIPES["imagenet/poolformer_s12"].__doc__ or ""
    assert "4e-4" in text and "4e-3" in text and "1024" in text
    assert "raw weights" in (RECIPES["imagenet/cyclemlp_b1"].__doc__ or "")


def test_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="imagenet/poolformer_s12"):
        find("imagenet/poolformer_s21")


DENSE = json.loads((Path(__file__).parent / "dense.json").read_text())


def test_every_published_dense_run_has_a_recipe_and_no_other_claims_to_be_one() -> None:
    assert {name for name in RECIPES if name.startswith("ade20k/")} == set(DENSE["runs"])


@pytest.mark.parametrize("run", DENSE["runs"])
def test_dense_settings_are_the_published_ones(run: str) -> None:
    own = dict(DENSE["runs"][run])
    settings = {**DENSE["groups"][own.pop("group")], **own}
    recipe = RECIPES[run]
    assert recipe.miou == settings.pop("miou")
    assert {key: look_up(recipe(), key) for key in settings} == settings
    assert run == f"ade20k/{recipe().segment.head}_{recipe().model.name}"
    check(replace(recipe(), data=replace(recipe().data, root="somewhere")), world_size=8)


DETECTION = json.loads((Path(__file__).parent / "detection.json").read_text())


def test_every_detection_run_has_a_recipe_and_no_other_claims_to_be_one() -> None:
    assert {name for name in RECIPES if name.startswith("coco/")} == set(DETECTION["runs"])


@pytest.mark.parametrize("run", DETECTION["runs"])
def test_detection_settings_are_the_published_ones(run: str) -> None:
    own = dict(DETECTION["runs"][run])
    settings = {**DETECTION["groups"][own.pop("group")], **own}
    recipe = RECIPES[run]
    for figures in ("box_ap", "mask_ap"):
        assert look_up(recipe, figures) == settings.pop(figures)
    assert {key: look_up(recipe(), key) for key in settings} == settings
    assert run.removesuffix("_1x").removesuffix("_3x") == f"coco/{recipe().detect.head}_{recipe().model.name}"
    check(replace(recipe(), data=replace(recipe().data, root="somewhere")), world_size=8)


def test_figures_of_detection_are_told_by_name() -> None:
    text = RECIPES["coco/mask_rcnn_poolformer_s12_1x"].__doc__ or ""
    assert "box AP 37.3, AP50 59.0, AP75 40.1," in text and "mask AP 34.6, AP50 55.8" in text
    assert "small 20.8, medium 39.1, large 48.0" in (
        RECIPES["coco/retinanet_poolformer_s12_1x"].__doc__ or ""
    )
    assert "paper gives a learning rate of 1e-4" in text
