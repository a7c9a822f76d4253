import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.checkpoint.run_dir import read_log
from metaformer.config import TrainConfig
from metaformer.distributed import (
    World,
    all_gather_list,
    all_reduce_sum,
    find_device,
    join,
    rank,
    world_size,
)
from metaformer.errors import ConfigError
from metaformer.inference.evaluate import evaluate
from metaformer.serialize import from_dict, to_dict
from metaformer.training.train import train

Configure = Callable[..., TrainConfig]
Digest = Callable[[Path], dict[str, Any]]


def train_and_measure(config: str, out: str, resume: str = "") -> None:
    """What each of two processes does."""
    train(from_dict(TrainConfig, json.loads(Path(config).read_text())), out, resume or None)
    if not resume:
        report = evaluate(out, workers=0, batch_size=2)
        print(json.dumps({"top1": report.top1, "loss": report.loss, "images": report.images}))


def test_two_processes_equal_one_and_go_on_bit_for_bit(
    configure: Configure, tmp_path: Path, digest: Digest, two_ranks: Callable[..., list[str]]
) -> None:
    config = configure(
        optim={"name": "sgd", "lr": 1e-2, "accumulate": 1},
        data={"batch_size": 8},
        model={"overrides": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "layer_scale": [None] * 4}},
        runtime={"save_every": 1},
    )
    train(config, tmp_path / "one")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    lines = two_ranks(train_and_measure, str(file), str(tmp_path / "two"))
    one, two = (digest(tmp_path / name / "checkpoints" / "step_6") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    straight, shared = (
        [(line["step"], line["loss"]) for line in read_log(tmp_path / name) if line["kind"] == "train"]
        for name in ("one", "two")
    )
    assert [step for step, _ in straight] == [step for step, _ in shared]
    assert [loss for _, loss in shared] == pytest.approx([loss for _, loss in straight], rel=1e-4)
    # measured together: every image once, and the same figures on both
    alone = evaluate(tmp_path / "two", workers=0)
    for line in lines:
        figures = json.loads(line)
        assert figures["images"] == alone.images == 15
        assert figures["top1"] == alone.top1 and figures["loss"] == pytest.approx(alone.loss, rel=1e-5)

    for step in (5, 6):
        (tmp_path / "two" / "checkpoints" / f"step_{step}" / "manifest.json").unlink()
    two_ranks(train_and_measure, str(file), str(tmp_path / "two"), "auto")
    again = digest(tmp_path / "two" / "checkpoints" / "step_6")
    assert all(torch.equal(again[name], value) for name, value in two.items())


def test_one_process_needs_no_group() -> None:
    world = join("cpu")
    assert world == World() and world.main and (rank(), world_size()) == (0, 1)
    assert not torch.distributed.is_initialized()
    assert int(all_reduce_sum(torch.tensor(3))) == 3 and all_gather_list(["a"]) == ["a"]


@pytest.mark.parametrize("name", ["gpu", "tpu", "meta", "cuda:99", ""])
def test_a_missing_device_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        find_device(name)


@pytest.mark.parametrize("name", ["mps", "mps:0", "xpu"])
def test_a_device_of_another_kind_is_a_clear_no(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{name}' is not supported, only cpu and CUDA's"):
        find_device(name)


def test_auto_is_the_best_device() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")
