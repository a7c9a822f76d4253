"""Plans: what is refused, in one line that names the field, and what a hash depends on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaformer.config import TrainConfig
from metaformer.errors import ConfigError
from metaformer.recipes import RECIPES
from metaformer.serialize import to_dict
from metaformer.study.plan import CONTROLS, SEEDS, Budget, parse_plan, read_plan
from metaformer.study.runs import outward

COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "study").rglob("*.yaml"))
MakePlan = Callable[..., Any]
WritePlan = Callable[..., Path]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "field": ({"mixer": "pooling"}, "unknown field 'mixer': did you mean mixers"),
    "mixer": ({"mixers": {"a": "pooling", "b": "poling"}, "baseline": "a"}, "mixers.b.*poling.*pooling"),
    "mixer's notation": ({"mixers": {"a": "pooling", "b": "po ling"}, "baseline": "a"}, "mixers.b.*po ling"),
    "stages": (
        {"mixers": {"a": "pooling", "b": ["pooling"] * 3}, "baseline": "a"}, "mixers.b.*must hold 4 values"
    ),
    "name": ({"mixers": {"a/b": "pooling", "c": "dwconv"}, "baseline": "c"}, "mixers.*a/b"),
    "names alike": ({"mixers": {"A": "pooling", "a": "dwconv"}, "baseline": "a"}, "capital letters"),
    "one mixer": ({"mixers": {"a": "pooling"}, "baseline": "a"}, "mixers.*two"),
    "baseline": ({"baseline": "poling"}, "baseline.*poling.*pooling"),
    "recipe": ({"recipe": "finetun"}, "recipe.*finetune"),
    "task": ({"recipe": "finetune/segment"}, "recipe.*segment"),
    "skeleton": ({"skeleton": {"model": "poolformer_s13"}}, "skeleton.model.*poolformer_s12"),
    "dims": (
        {"skeleton": {"model": "poolformer_n", "overrides": {"dims": [8, 8]}}}, "skeleton.overrides.*dims"
    ),
    "override": ({"overrides": {"data": {"image_sise": 32}}}, "overrides.*image_sise.*image_size"),
    "override by auto": ({"overrides": {"data": {"batch_size": "auto"}}}, "overrides.data.batch_size: auto"),
    "override of the plan's": ({"overrides": {"optim": {"lr": 0.1}}}, "overrides.optim.lr.*learning_rates"),
    "mixers in the skeleton": (
        {"skeleton": {"model": "poolformer_n", "overrides": {"mixers": ["pooling"] * 4}}}, "by mixers"
    ),
    "rates": ({"fewer_rates": None}, "learning_rates.*5.*fewer_rates"),
    "rate": ({"learning_rates": [-1.0]}, "learning_rates"),
    "rate below the schedule's": (
        {"overrides": {"schedule": {"min_lr": 0.01}}}, "schedule.min_lr"
    ),
    "rate of a transfer below the schedule's": (
        {
            "transfer": {"epochs": 1, "learning_rate": 1e-5},
            "overrides": {"schedule": {"min_lr": 1e-4}, "data": {"image_size": 32}},
        },
        "schedule.min_lr",
    ),
    "seeds of a purpose": ({"purpose": "confirmatory"}, "seeds.*'confirmatory'.*10"),
    "seeds twice": ({"seeds": [0, 0]}, "seeds.*twice"),
    "seeds of the sweep": ({"sweep_seeds": [1]}, "sweep_seeds.*1 is among seeds"),
    "no sweep": ({"sweep_seeds": []}, "sweep_seeds"),
    "more runs than anyone means": (
        {"seeds": list(range(1000, 11_000))}, "mixers, learning_rates, seeds: make .* runs"
    ),
    "control": ({"controls": ["reapeat"]}, "controls"),
    "perturbation": ({"robustness": ["shit"]}, "robustness.*shift"),
    "perturbation twice": ({"robustness": ["size", "size"]}, "robustness.*twice"),
    "diagnostic task": ({"diagnostics": ["pointers"]}, "diagnostics.*pointer"),
    "diagnostic tasks on small images": (
        {"diagnostics": ["pointer"], "overrides": {"data": {"image_size": 15}}}, "diagnostics.*16 pixels"
    ),
    "hypothesis": ({"hypotheses": {"window": "bigger"}}, "hypotheses.*bigger"),
    "hypothesis on no mixer": ({"hypotheses": {"widow": "better"}}, "hypotheses.*widow.*window"),
    "hypothesis on the baseline": ({"hypotheses": {"pooling": "better"}}, "hypotheses.pooling.*baseline"),
    "splits": ({"data": {"root": "x", "val": "test"}}, "data.*three splits"),
    "purpose": ({"purpose": "proof"}, "purpose.*proof"),
    "splits by other names": ({"data": {"root": "x", "test": "./train"}}, "data.*three splits"),
    "splits from outside": ({"data": {"root": "a/x", "test": "../x/train/"}}, "data.*three splits"),
    "effect": ({"smallest_effect": 0}, "smallest_effect"),
    "tolerance": ({"budget": {"tolerance": 2}}, "budget.tolerance"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "named"), WRONG.values(), ids=WRONG)
def test_a_wrong_plan_is_one_line_that_names_the_field(
    changes: dict[str, Any], named: str, write_plan: WritePlan
) -> None:
    file = write_plan(**changes)
    with pytest.raises(ConfigError, match=f"plan.yaml: .*{named}") as caught:
        read_plan(file)
    assert "\n" not in str(caught.value)


def test_a_missing_field_and_a_file_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data: missing"):
        parse_plan("question: Why?", "plan.yaml")
    with pytest.raises(ConfigError, match=r"plan\.yaml"):
        parse_plan("- a\n- b", "plan.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_plan(tmp_path / "none.yaml")


def test_the_hash_is_of_the_content_not_of_the_text(make_plan: MakePlan, write_plan: WritePlan) -> None:
    file = write_plan()
    text = file.read_text()
    turned = yaml.safe_dump(yaml.safe_load(text), sort_keys=True)
    assert text != turned
    first, second = parse_plan(f"# a comment\n{text}", file), parse_plan(turned, file)
    assert first.sha256 == second.sha256 == make_plan().sha256
    assert make_plan(epochs=2).sha256 != first.sha256
    assert make_plan(seeds=[1, 0]).sha256 != first.sha256
    assert make_plan(external="resnet18", diagnostics=[]).sha256 == first.sha256, "defaults do not count"
    assert make_plan(hypotheses={"window": "better"}).sha256 != first.sha256


def test_a_latency_is_matched_less_closely_than_what_is_counted() -> None:
    found = {match: Budget(match=match).within for match in ("parameters", "macs", "latency")}
    assert found == {"parameters": 0.02, "macs": 0.02, "latency": 0.1}
    assert Budget(match="latency", tolerance=0.05).within == 0.05


@pytest.mark.parametrize(("purpose", "seeds"), SEEDS.items())
def test_each_purpose_has_its_seeds(purpose: str, seeds: int, make_plan: MakePlan) -> None:
    assert len(make_plan(purpose=purpose, seeds=list(range(seeds))).seeds) == seeds
    with pytest.raises(ConfigError, match=purpose):
        make_plan(purpose=purpose, seeds=list(range(seeds - 1)))


def test_five_rates_need_no_reason_and_all_controls_are_the_default(make_plan: MakePlan) -> None:
    plan = make_plan(learning_rates=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3], fewer_rates=None)
    assert type(plan)(**{**vars(plan), "controls": CONTROLS}) == make_plan(
        learning_rates=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3], fewer_rates=None, controls=list(CONTROLS)
    )


def test_overrides_change_the_recipe_and_nothing_else(make_plan: MakePlan) -> None:
    plan = make_plan()
    config, recipe = to_dict(plan.config()), to_dict(RECIPES["finetune"]())
    assert config["data"]["image_size"] == 32 and config["augment"]["scale"] == [0.5, 1.0]
    assert config["augment"]["hflip"] == recipe["augment"]["hflip"]
    assert config["loss"] == recipe["loss"] and config["ema"] == recipe["ema"]
    assert isinstance(plan.config(), TrainConfig) and plan.config().schedule.epochs == plan.epochs


def test_costs_are_measured_at_the_training_size_and_twice_it(make_plan: MakePlan) -> None:
    assert make_plan().sizes == (32, 64)
    assert make_plan(cost_sizes=[48]).sizes == (48,)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_plans_of_this_repository_can_be_read(file: Path) -> None:
    plan = read_plan(file)
    assert plan.hypotheses and plan.controls == CONTROLS and plan.fewer_rates is None


def test_outward_begins_in_the_middle() -> None:
    assert outward([1, 2, 3, 4, 5]) == [3, 2, 4, 1, 5]
    assert outward([1, 2]) == [1, 2] and outward([7]) == [7]
