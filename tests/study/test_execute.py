"""Studies from the plan to the last prediction: done, resumed, shared, failed, refused."""

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metaformer.checkpoint.runs import find_runs
from metaformer.data.split import open_split
from metaformer.errors import ConfigError, DataError, MetaFormerError, VersionError
from metaformer.inference.predictor import Predictor
from metaformer.serialize import from_dict
from metaformer.study.diagnostics import diagnose
from metaformer.study.execute import preview_study, run_study
from metaformer.study.plan import DataPlan
from metaformer.study.predict import describe_test, last_checkpoint
from metaformer.study.study_dir import Study, read_study
from metaformer.study.worker import held
from study.conftest import PLAN, contents

WritePlan = Callable[..., Path]


def test_a_study_does_all_that_its_plan_says(done: Study) -> None:
    names = {run.name for run in done.runs}
    seeds, rates = done.plan.seeds, done.plan.learning_rates
    assert names == {
        *(f"sweep-{arm}-lr{rate!r}-seed100" for arm in ("pooling", "window") for rate in rates),
        *(f"final-{arm}-seed{seed}" for arm in ("pooling", "window", "control-repeat") for seed in seeds),
    }
    assert [arm.learning_rate for arm in done.arms] == [0.003] * 3
    assert done.plan_sha256 == done.plan.sha256 and torch.__version__.startswith(done.versions["torch"])
    assert done.machine["device"].startswith("cpu")
    labels = done.test_set.labels
    assert np.bincount(labels).tolist() == [5, 5, 5] and len(set(done.test_set.clusters.tolist())) == 15
    for run in done.runs:
        if run.role != "sweep":
            found = done.predictions(run.name)
            assert run.test == pytest.approx(100 * np.mean(found.predicted == labels))
            assert ((found.probability > 1 / 3) & (found.probability <= 1)).all()


def test_every_figure_has_its_run(done: Study) -> None:
    for run in done.runs:
        config = json.loads((done.directory.run(run.name) / "config.json").read_text())
        assert config["optim"]["lr"] == run.learning_rate and config["model"]["mixers"]
    states = {Path(run.path).name: run for run in find_runs(done.directory.path)}
    final = states["final-window-seed1"]
    assert (final.mixers, final.seed, final.learning_rate, final.epochs) == ("dwconv", 1, 0.003, 1)
    assert final.state == "complete"


def test_the_last_checkpoint_is_what_is_tested(done: Study, colors: Path) -> None:
    checkpoint = last_checkpoint(done.directory.run("final-window-seed0"))
    assert checkpoint.state["step"] == checkpoint.state["total"] == 3
    predictor = Predictor(checkpoint.directory)
    files = [colors / "test" / name for name in done.test_set.images]
    classes = [result.indices[0] for result in predictor(files)]
    assert classes == done.predictions("final-window-seed0").predicted.tolist()
    run = next(run for run in done.runs if run.name == "final-window-seed0")
    assert run.validation == 100 * checkpoint.state["metrics"]["top1"]


def test_a_run_that_fails_is_recorded_with_the_reason(done: Study) -> None:
    failed = [run for run in done.runs if run.error]
    assert {run.learning_rate for run in failed} == {1e30} and len(failed) == 2
    assert all("not finite" in str(run.error) and run.validation is None for run in failed)


def test_costs_are_those_of_each_network_and_size(done: Study) -> None:
    for arm in done.arms:
        assert [cost.image_size for cost in arm.costs] == [32, 64]
        small, large = arm.costs
        assert large.macs > 3 * small.macs and large.inference_memory > small.inference_memory
        assert small.training_memory > small.inference_memory > 0 and small.latency_8 > small.latency_1 / 2
    pooling, window, repeat = done.arms
    assert window.costs[0].macs > pooling.costs[0].macs == repeat.costs[0].macs
    assert window.parameters > pooling.parameters == repeat.parameters


@pytest.fixture
def copied(done: Study, tmp_path: Path) -> Path:
    """A copy of the study."""
    return shutil.copytree(done.directory.path, tmp_path / "study")


def test_a_study_that_is_done_stays_as_it_is(done: Study, copied: Path, write_plan: WritePlan) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.json")}
    again = run_study(write_plan(), copied)
    assert before == {path: path.stat().st_mtime_ns for path in copied.rglob("*.json")}
    assert again.runs == done.runs


def test_what_is_missing_is_done_again_with_the_same_bytes(copied: Path, write_plan: WritePlan) -> None:
    before = contents(copied)
    for lost in ("results/final-window-seed1.json", "predictions/final-window-seed1.safetensors"):
        (copied / lost).unlink()
    shutil.rmtree(copied / "runs" / "final-window-seed1")
    run_study(write_plan(), copied)
    assert contents(copied) == before


def test_another_plan_is_another_study(copied: Path, write_plan: WritePlan) -> None:
    with pytest.raises(ConfigError, match=r"another plan \(epochs: 1 → 2\)"):
        run_study(write_plan(epochs=2), copied)
    (copied / "plan.yaml").write_text(write_plan(epochs=3).read_text())
    with pytest.raises(ConfigError, match="is not the plan that the study"):
        read_study(copied)


def test_other_test_images_are_refused(copied: Path, write_plan: WritePlan, colors: Path) -> None:
    values = json.loads((copied / "test.json").read_text())
    (copied / "test.json").write_text(json.dumps({**values, "images": [*values["images"][:-1], "x.png"]}))
    with pytest.raises(DataError, match="other test images"):
        run_study(write_plan(), copied)


def test_what_another_process_works_at_is_left_to_it(copied: Path, write_plan: WritePlan) -> None:
    lost = copied / "results" / "final-window-seed1.json"
    other = copied / "results" / "final-pooling-seed1.json"
    lost.unlink(), other.unlink()
    with held(copied / "locks" / "final-window-seed1.lock") as ours:
        assert ours
        run_study(write_plan(), copied)
        assert other.is_file() and not lost.is_file()
    run_study(write_plan(), copied)
    assert lost.is_file()


def test_hours_end_a_run_that_goes_on_later(copied: Path, write_plan: WritePlan) -> None:
    before = contents(copied)
    (copied / "results" / "final-window-seed1.json").unlink()
    shutil.rmtree(copied / "runs" / "final-window-seed1")
    study = run_study(write_plan(), copied, hours=1e-7)
    assert "final-window-seed1" not in {run.name for run in study.runs}
    run_study(write_plan(), copied, hours=1)
    assert contents(copied) == before
    with pytest.raises(ConfigError, match="hours"):
        run_study(write_plan(), copied, hours=0)


def test_clusters_are_what_the_expression_matches(colors: Path) -> None:
    split = open_split(colors, "test")
    found = describe_test(from_dict(DataPlan, {"root": str(colors), "group": r"/(\d)\.png"}), split)
    assert found.clusters.tolist() == [0, 1, 2, 3, 4] * 3
    with pytest.raises(DataError, match="does not match"):
        describe_test(from_dict(DataPlan, {"root": str(colors), "group": "ant"}), split)
    with pytest.raises(ConfigError, match="no regular expression"):
        describe_test(from_dict(DataPlan, {"root": str(colors), "group": "("}), split)


def recipe(**sections: dict[str, Any]) -> dict[str, Any]:
    """Overrides of the tiny plan with further fields."""
    overrides: dict[str, Any] = copy.deepcopy(PLAN["overrides"])
    for section, fields in sections.items():
        overrides[section] = {**overrides.get(section, {}), **fields}
    return {"overrides": overrides}


CANNOT_BEGIN = {
    "folder": ({"data": {"root": "/nowhere"}}, "nowhere"),
    "split": ({"data": {"test": "held"}}, "held"),
    "one group": ({"data": {"group": "(x)?"}}, "data.group.*two"),
    "memory": ({"skeleton": {"model": "poolformer_n", "overrides": {"dims": [999_999] * 4}}}, "memory"),
    "mixer's option": ({"mixers": {"a": "pooling", "b": "attention(dropout=9.0)"}}, "mixers.b"),
    "augmentation": (recipe(augment={"auto_augment": "rand-mm9"}), "augment.auto_augment.*timm"),
    "batch of more images than there are": (
        recipe(data={"batch_size": 64}),
        "18 training images.*batch_size",
    ),
    "weights of other classes": (recipe(loss={"class_weights": [1.0]}), "loss.class_weights.*3 classes"),
    "views": (recipe(loss={"name": "jsd"}), "loss.name 'jsd'.*aug_splits"),
}


@pytest.mark.parametrize(("changes", "named"), CANNOT_BEGIN.values(), ids=CANNOT_BEGIN)
def test_what_cannot_begin_leaves_no_study(
    changes: dict[str, Any], named: str, write_plan: WritePlan, tmp_path: Path, colors: Path
) -> None:
    if "mixers" in changes:
        changes = {**changes, "baseline": "a"}
    if "data" in changes:
        changes = {"data": {"root": str(colors), **changes["data"]}}
    with pytest.raises(MetaFormerError, match=named) as caught:
        run_study(write_plan(**changes), tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="holds no study"):
        read_study(tmp_path / "out")


def test_a_preview_names_the_jobs_and_writes_nothing(
    done: Study, write_plan: WritePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_plan()
    before = set(tmp_path.rglob("*"))
    names = preview_study(file)
    assert set(names) == {*(run.name for run in done.runs), "costs-pooling", "costs-window"}
    assert set(tmp_path.rglob("*")) == before


def test_data_of_one_class_leave_no_study(colors: Path, write_plan: WritePlan, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.copytree(colors / split / "ant", tmp_path / "data" / split / "ant")
    with pytest.raises(DataError, match="only one class"):
        run_study(write_plan(data={"root": str(tmp_path / "data")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


DAMAGE = {
    "results/final-window-seed0.json": ('{"name": 3}', "final-window-seed0.json: arm: missing"),
    "costs/window.json": ("{", "window.json"),
    "test.json": (
        '{"images": ["a"], "labels": [7], "clusters": [0], "class_names": ["x"]}',
        "test.json.*below 1",
    ),
    "study.json": ('{"schema": "x"}', "study.json.*schema"),
}


@pytest.mark.parametrize(("name", "text", "named"), [(n, *d) for n, d in DAMAGE.items()], ids=list(DAMAGE))
def test_a_damaged_file_is_named(name: str, text: str, named: str, copied: Path) -> None:
    (copied / name).write_text(text)
    with pytest.raises(DataError, match=named):
        read_study(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"arm": "pooling"},
        {"arm": "none", "name": "final-none-seed0"},
        {"seed": 1},
        {"seed": 9, "name": "final-window-seed9"},
        {"name": "../final-pooling-seed0"},
        {"role": "sweep"},
    ],
)
def test_a_result_does_not_count_as_that_of_another_run(changes: dict[str, Any], copied: Path) -> None:
    file = copied / "results" / "final-window-seed0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(DataError, match="no run of the plan"):
        read_study(copied)


@pytest.mark.parametrize("change", [lambda arms: [], lambda arms: arms[1:], lambda arms: arms + arms[:1]])
def test_networks_that_are_not_the_plans_are_refused(change: Callable[..., Any], copied: Path) -> None:
    head = json.loads((copied / "study.json").read_text())
    (copied / "study.json").write_text(json.dumps({**head, "arms": change(head["arms"])}))
    with pytest.raises(DataError, match=r"study\.json: arms"):
        read_study(copied)


def test_damaged_predictions_and_other_formats_are_named(done: Study, copied: Path) -> None:
    study = read_study(copied)
    file = copied / "predictions" / "final-window-seed0.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"final-window-seed0\.safetensors.*damaged"):
        study.predictions("final-window-seed0")
    with pytest.raises(DataError, match=r"none\.safetensors"):
        study.predictions("none")
    head = json.loads((copied / "study.json").read_text())
    (copied / "study.json").write_text(json.dumps({**head, "schema": 99}))
    with pytest.raises(VersionError, match="99"):
        read_study(copied)


STUDY = (
    sys.executable,
    "-c",
    "import sys; from metaformer.study.execute import run_study; run_study(*sys.argv[1:])",
)
"""A process that carries out a plan in a folder."""


@pytest.mark.slow
def test_two_processes_share_a_study(done: Study, write_plan: WritePlan, tmp_path: Path) -> None:
    command, out = [*STUDY, str(write_plan()), str(tmp_path / "out")], tmp_path / "out"
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for run in done.runs:
        assert sum(text.count(f"] {run.name}\n") for text in said) == 1, "done once"
    assert all("] final-" in text or "] sweep-" in text for text in said), "by both"
    assert contents(out) == contents(done.directory.path)


@pytest.mark.slow
def test_killed_five_times_a_study_equals_the_uninterrupted_one(
    done: Study, write_plan: WritePlan, tmp_path: Path
) -> None:
    plan, out, draw = write_plan(), tmp_path / "killed", np.random.RandomState(0)
    command = [*STUDY, str(plan), str(out)]
    for number in range(5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        target = 2 * number + 1
        end = time.monotonic() + 60
        while len(list(out.glob("results/*.json"))) < target and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    study = run_study(plan, out)
    assert study.runs == done.runs
    assert contents(out) == contents(done.directory.path)


@pytest.mark.slow
def test_all_controls_and_measurements(
    write_plan: WritePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaformer.study.worker.diagnose", partial(diagnose, steps=5))
    plan = write_plan(
        controls=["repeat", "shuffled_labels", "identity", "random", "external"],
        learning_rates=[0.003],
        robustness=["shift", "rotation", "size", "corruption"],
        receptive_field=True,
        diagnostics=["same_different", "pointer", "connectivity", "counting", "size_transfer"],
        transfer={"epochs": 1, "learning_rate": 0.001},
        mixers={"pooling": "pooling", "fixed": "spatial_fc"},
    )
    study = run_study(plan, tmp_path / "out")
    assert {arm.control for arm in study.arms} == {
        None, "repeat", "shuffled_labels", "identity", "random", "external",
    }  # fmt: skip
    assert not [run for run in study.runs if run.error]
    measured = {(arm, seed) for arm in ("pooling", "fixed") for seed in (0, 1)}
    assert {(one.arm, one.seed) for one in study.robustness} == measured
    assert {(one.arm, one.seed) for one in study.field_sizes} == measured
    sizes = {one.arm: [a.level for a in one.accuracies if a.kind == "size"] for one in study.robustness}
    assert sizes["pooling"] == [16, 24, 40, 48, 64] and sizes["fixed"] == []
    by_name = {run.name: run for run in study.runs}
    for one in study.robustness:
        unchanged = next(a.accuracy for a in one.accuracies if a.kind == "shift" and a.level == 0)
        assert unchanged == pytest.approx(by_name[one.run].test)
    for size in study.field_sizes:
        field = study.receptive_field(size.run)
        assert field is not None and field.max() == 1 and len(size.squares) == 4
    tasks = {(one.arm, one.task, one.accuracy is None) for one in study.diagnostics}
    assert ("fixed", "size_transfer", True) in tasks and ("pooling", "size_transfer", False) in tasks
    assert {(one.arm, one.seed) for one in study.transfers} == measured
    for swap in study.transfers:
        if swap.arm == "pooling":
            assert swap.swapped == by_name[f"final-pooling-seed{swap.seed}"].test, "nothing was swapped"
    assert run_study(plan, tmp_path / "out").runs == study.runs
    assert yaml.safe_load(study.directory.plan.read_text()) == yaml.safe_load(plan.read_text())
