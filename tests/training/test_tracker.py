import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaformer.config import TrainConfig
from metaformer.errors import MissingPackage
from metaformer.serialize import to_dict
from metaformer.training.check import check
from metaformer.training.tracker import Tracker
from metaformer.training.train import train

Configure = Callable[..., TrainConfig]

TRAIN = """
import json, sys
from pathlib import Path
from metaformer.serialize import from_dict
from metaformer.training.train import train
train(from_dict(json.loads(Path(sys.argv[1]).read_text())), sys.argv[2], sys.argv[3] or None)
"""


def start(
    config: Path, out: Path, resume: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Train in a process of its own: the service's client leaves threads behind."""
    words = [sys.executable, "-c", TRAIN, str(config), str(out), resume]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env = {**kept, "HOME": str(out.parent), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)


def stored(run: Path) -> list[bytes]:
    """What each session has kept for later."""
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    return [file.read_bytes() for file in files]


def test_offline_a_run_and_its_continuation_are_kept_in_the_run_directory(
    configure: Configure, tmp_path: Path, digest: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    pytest.importorskip("wandb")
    file, out, plain = tmp_path / "config.json", tmp_path / "run", tmp_path / "plain"
    for epochs in (1, 2):
        config = configure(schedule={"epochs": epochs}, runtime={"wandb": "digits"})
        file.write_text(json.dumps(to_dict(config)))
        done = start(file, out, "auto", WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
        train(configure(schedule={"epochs": epochs}), plain, "auto")
    sessions = stored(out)
    name = (out / "wandb/id.txt").read_text().strip().encode()
    assert len(sessions) == 2
    for session in sessions:
        assert name in session and b"digits" in session  # the same run of the same project
        assert b"train/loss" in session and b"eval/top1" in session and b"poolformer_n" in session
    one, other = (digest(run / "checkpoints/step_8") for run in (out, plain))
    assert one.keys() == other.keys()  # and the training is what it was
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_without_a_key_it_is_told_before_the_first_step(configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(configure(runtime={"wandb": "digits"}))))
    done = start(file, tmp_path / "run", WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError: runtime.wandb 'digits': it cannot be reached" in last
    assert "WANDB_MODE=offline" in last
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_missing_package_is_told_with_the_other_settings(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match=r"pip install 'metaformer\[wandb\]'"):
        Tracker("digits", tmp_path, {}, print)
    monkeypatch.setattr("metaformer.training.check.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"runtime.wandb needs wandb: pip install 'metaformer\[wandb\]'"):
        check(configure(runtime={"wandb": "digits"}))
    check(configure())


def test_a_service_that_fails_ends_no_training(tmp_path: Path) -> None:
    class Failing:
        def log(self, figures: dict[str, float]) -> None:
            raise ConnectionError("gone")

        def finish(self) -> None:
            raise AssertionError("not asked again")

    told: list[str] = []
    tracker = Tracker.__new__(Tracker)
    tracker.run, tracker.say = Failing(), told.append
    tracker.log("train", 1, 0, {"loss": 1.0})
    tracker.log("train", 2, 0, {"loss": 1.0})
    tracker.close()
    assert len(told) == 1 and "gone" in told[0] and "metrics.jsonl" in told[0]
