"""Runs of every task: resumed, cut, shared by two processes, and what stops one before it begins."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.config import TrainConfig
from metaformer.distributed import barrier
from metaformer.errors import ConfigError, DataError
from metaformer.inference.evaluate import evaluate
from metaformer.serialize import from_dict, to_dict
from metaformer.tasks import TASKS
from metaformer.training.train import train
from metaformer.training.trainer import Trainer
from toys import TINY, Configure, Digest, equal_states, log_lines

EVERYTHING: dict[str, Any] = {
    "optim": {"accumulate": 2, "clip": 1.0},
    "ema": {"decay": 0.9},
    "runtime": {"save_every": 1},
}
AUGMENT = {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"}
STEPS = {"name": "step", "milestones": [1], "steps": 4, "warmup_steps": 1}
SIDES = {"head": "mask_rcnn", "long_side": 80, "short_sides": [32, 48, 64], "photometric": True}
JITTER = {"head": "mask_rcnn", "jitter": [0.5, 1.5], "group_by_aspect": False}
CLASSIFY: dict[str, Any] = {"model": {"drop_path_rate": 0.2, "head_dropout": 0.2}, "augment": AUGMENT}
MULTILABEL: dict[str, Any] = {
    "model": {"drop_path_rate": 0.2},
    "augment": {"erase": 0.5, "auto_augment": AUGMENT["auto_augment"]},
    "multilabel": {"loss": "asymmetric"},
    "optim": {},
    "schedule": {"epochs": 3},
}
SEGMENT: dict[str, Any] = {
    "model": {"drop_path_rate": 0.2},
    "segment": {"dropout": 0.3, "auxiliary": True, "dice": 0.5},
    "schedule": {"name": "poly", "steps": 5, "warmup_steps": 1},
    "evaluate": {"every_steps": 2},
}
DETECT: dict[str, Any] = {
    "model": {"drop_path_rate": 0.2},
    "schedule": STEPS,
    "data": {"image_size": 48},
    "evaluate": {"every_steps": 3, "flip": True},
}


@pytest.mark.parametrize(
    ("task", "sections", "evaluated", "workers", "then"),
    [
        ("classify", CLASSIFY, [4, 8], 2, 0),
        ("classify", CLASSIFY, [4, 8], 0, 2),
        ("multilabel", MULTILABEL, [2, 4, 6], 0, 2),
        ("multilabel", MULTILABEL, [2, 4, 6], 2, 0),
        ("segment", SEGMENT, [2, 4, 5], 0, 2),
        ("segment", SEGMENT, [2, 4, 5], 2, 0),
        ("detect", {**DETECT, "detect": SIDES}, [3, 4], 0, 2),
        ("detect", {**DETECT, "detect": JITTER}, [3, 4], 2, 0),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(
    task: str,
    sections: dict[str, Any],
    evaluated: list[int],
    workers: int,
    then: int,
    configure_task: Configure,
    tmp_path: Path,
    digest: Digest,
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    data = {**sections.get("data", {}), "workers": workers}
    config = configure_task(task, **{**EVERYTHING, **sections, "data": data})
    assert train(config, one).steps == evaluated[-1]
    assert [line["step"] for line in log_lines(one, "eval")] == evaluated
    shutil.copytree(one, other, symlinks=True)
    lost = range(evaluated[-1] - 2, evaluated[-1] + 1)  # killed in the middle of an epoch
    for step in lost:
        shutil.rmtree(other / f"checkpoints/step_{step}")
    if lost[0] <= evaluated[0]:
        shutil.rmtree(other / "best")
    again = replace(config, data=replace(config.data, workers=then))
    assert train(again, other, resume="auto").complete
    for place in ("best", *(f"checkpoints/step_{step}" for step in lost)):
        assert equal_states(digest(one / place), digest(other / place)), place
        cards = [json.loads((run / place / "state.json").read_text())["card"] for run in (one, other)]
        assert cards[0] == cards[1], "thresholds too"
    losses = [[(line["step"], line["loss"]) for line in log_lines(run, "train")] for run in (one, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("task", TASKS)
def test_an_evaluation_interrupted_by_a_signal_is_repeated(
    task: str, configure_task: Configure, tmp_path: Path, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = configure_task(task, data={"eval_batch_size": 2})
    train(config, whole)
    original, calls = Trainer.forward, []

    def interrupting(self: Trainer, *inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *inputs)

    monkeypatch.setattr(Trainer, "forward", interrupting)
    with pytest.raises(SystemExit) as caught:
        train(config, cut)
    assert caught.value.code == 143 and len(calls) == 2 and not (cut / "best").exists()
    (saved,) = (cut / "checkpoints").iterdir()
    assert json.loads((saved / "state.json").read_text())["evaluation_pending"]
    monkeypatch.setattr(Trainer, "forward", original)
    result = train(config, cut, resume="auto")
    assert result.complete
    for place in ("best", f"checkpoints/{saved.name}", f"checkpoints/step_{result.steps}"):
        assert equal_states(digest(whole / place), digest(cut / place)), place
    found = [[(line["step"], line[result.metric]) for line in log_lines(run, "eval")] for run in (whole, cut)]
    assert found[0] == found[1]


def train_and_resume(config: str, out: str) -> None:
    """In each of two processes: a run, its evaluation, and the run resumed from before its last two steps."""
    torch.set_num_threads(1)
    settings, run, again = (
        from_dict(TrainConfig, json.loads(Path(config).read_text())),
        f"{out}/two",
        f"{out}/again",
    )
    steps = train(settings, run).steps
    report = evaluate(run, workers=0, batch_size=2)
    print(json.dumps({**report.metrics, "images": report.images}))
    if os.environ["RANK"] == "0":
        shutil.copytree(run, again, symlinks=True)
        for step in (steps - 1, steps):
            shutil.rmtree(f"{again}/checkpoints/step_{step}")
    barrier()
    train(settings, again, "auto")


def one_object_per_image(root: Path) -> None:
    """The same box in every image: as many anchors match in each, so a loss is the mean over the images."""
    for file in (root / "annotations").glob("*.json"):
        document = json.loads(file.read_text())
        first = document["annotations"][0]
        document["annotations"] = [{**first, "id": i["id"], "image_id": i["id"]} for i in document["images"]]
        file.write_text(json.dumps(document))


SHARED: dict[str, dict[str, Any]] = {
    "classify": {"data": {"batch_size": 8}},
    "multilabel": {},
    "detect": {
        "detect": {"head": "retinanet", "score_threshold": 0.001},
        "augment": {"hflip": 0.0},
        "schedule": {"steps": 4},
    },
}


@pytest.mark.parametrize("task", SHARED)
def test_two_processes_equal_one_and_resume_bit_for_bit(
    task: str,
    configure_task: Configure,
    blocks: Path,
    tmp_path: Path,
    digest: Digest,
    two_ranks: Callable[..., list[str]],
) -> None:
    sections = {
        "optim": {"name": "sgd", "lr": 1e-2},
        "model": {"overrides": {**TINY, "layer_scale": [None] * 4}},
        "runtime": {"save_every": 1},
        **SHARED[task],
    }
    if task == "detect":
        one_object_per_image(shutil.copytree(blocks, tmp_path / "data"))
        sections["data"] = {"root": str(tmp_path / "data")}
    config = configure_task(task, **sections)
    steps = train(config, tmp_path / "one").steps
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    outputs = two_ranks(train_and_resume, str(tmp_path / "config.json"), str(tmp_path))
    one, two, again = (
        digest(tmp_path / f"{name}/checkpoints/step_{steps}") for name in ("one", "two", "again")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    assert equal_states(two, again)
    alone, both = (
        [(line["step"], line["loss"]) for line in log_lines(tmp_path / name, "train")]
        for name in ("one", "two")
    )
    assert [step for step, _ in alone] == [step for step, _ in both]
    assert [loss for _, loss in both] == pytest.approx([loss for _, loss in alone], rel=1e-4)
    # measured together: every image once, and the same figures on both
    report = evaluate(tmp_path / "two", device="cpu", workers=0)
    for line in outputs:
        assert json.loads(line) == pytest.approx({**report.metrics, "images": report.images}, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "sections", "error", "named"),
    [
        ("classify", {"data": {"batch_size": 0}}, ConfigError, "data.batch_size"),
        ("classify", {"data": {"batch_size": 60}}, DataError, "data.batch_size"),
        ("classify", {"data": {"val": "test"}}, DataError, "'test'"),
        ("classify", {"model": {"name": "poolformer_s13"}}, ConfigError, "poolformer_s12"),
        ("classify", {"model": {"num_classes": 7}}, ConfigError, "model.num_classes"),
        ("classify", {"model": {"overrides": {"drop_path_rate": 0.1}}}, ConfigError, "model.drop_path_rate"),
        ("classify", {"runtime": {"device": "tpu"}}, ConfigError, "device: 'tpu'"),
        ("classify", {"runtime": {"device": "cuda:99"}}, ConfigError, "device: 'cuda:99'"),
        ("classify", {"augment": {"auto_augment": "rand-m99-x"}}, ConfigError, "augment.auto_augment"),
        ("classify", {"evaluate": {"class_subset": "no.txt"}}, DataError, r"no\.txt"),
        ("multilabel", {"multilabel": {"pos_weight": [1.0]}}, ConfigError, r"multilabel\.pos_weight"),
        ("multilabel", {"multilabel": {"class_names": "none.txt"}}, DataError, r"none\.txt"),
        ("multilabel", {"multilabel": {"layout": "jsonl"}}, DataError, r"train\.jsonl"),
        (
            "multilabel",
            {"multilabel": {"balance": True, "pos_weight": [1.0, 2.0]}},
            ConfigError,
            r"multilabel\.balance",
        ),
        ("multilabel", {"model": {"num_classes": 3}}, ConfigError, r"model\.num_classes"),
        ("multilabel", {"data": {"val": "test"}}, DataError, "test"),
        (
            "segment",
            {"segment": {"class_weights": [1.0, 2.0]}},
            ConfigError,
            "class_weights has 2 .* 3 classes",
        ),
        ("detect", {"data": {"batch_size": 13}}, DataError, "12 training images do not fill one batch of 13"),
        ("detect", {"data": {"val": "test"}}, DataError, "instances_test"),
        ("detect", {"model": {"num_classes": 7}}, ConfigError, "model.num_classes is 7.* holds 2 classes"),
        ("detect", {"model": {"name": "poolformer_s13"}}, ConfigError, "did you mean"),
        ("detect", {"detect": {"layout": "voc"}}, DataError, "Annotations"),
        ("detect", {"detect": {"class_names": "names.txt"}}, DataError, r"names\.txt"),
        ("detect", {"detect": {"scales": [0.0]}}, ConfigError, r"detect\.scales"),
    ],
)
def test_a_wrong_field_is_named_before_any_work(
    task: str,
    sections: dict[str, Any],
    error: type[Exception],
    named: str,
    configure_task: Configure,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=named):
        train(configure_task(task, **sections), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
