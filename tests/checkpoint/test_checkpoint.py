import json
import random
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metaformer.checkpoint.checkpoint import (
    FORMAT,
    STATE,
    checkpoints,
    newest,
    pack_optimizer,
    prune,
    random_state,
    read_checkpoint,
    restore_optimizer,
    set_random_state,
    step_directory,
    write_checkpoint,
)
from metaformer.checkpoint.manifest import write_directory
from metaformer.config import OptimConfig
from metaformer.errors import VersionError, WeightsError
from metaformer.training.optim import build_optimizer
from toys import equal_states

CPU = torch.device("cpu")


def saved(folder: Path, step: int) -> Path:
    state_dicts = {"model": {"w": torch.full((64,), float(step))}}
    return write_checkpoint(step_directory(folder, step), state_dicts, {"step": step})


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).bfloat16(),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
    }
    target = write_checkpoint(tmp_path / "step_1", {"model": tensors}, {"step": 1, "text": "é", "x": 0.1})
    opened = read_checkpoint(target)
    written = {"format": FORMAT, "version": metadata.version("metaformer")}
    assert opened.state == {**written, "step": 1, "text": "é", "x": 0.1}
    read = opened.tensors("model")
    assert equal_states(read, tensors) and all(read[name].dtype == tensors[name].dtype for name in read)
    assert not opened.has("ema")
    with pytest.raises(WeightsError, match=r"no ema\.safetensors"):
        opened.tensors("ema")


def test_steps_are_ordered_by_number_and_the_oldest_are_removed(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        saved(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_100", "step_10", "step_9"]
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_100"]


def test_damaged_checkpoints_are_skipped_and_named(tmp_path: Path) -> None:
    assert newest(tmp_path, print) is None
    for step in (1, 2, 3):
        saved(tmp_path, step)
    file = step_directory(tmp_path, 3) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    (step_directory(tmp_path, 2) / "manifest.json").unlink()
    lines: list[str] = []
    found = newest(tmp_path, lines.append)
    assert found is not None and found.state["step"] == 1
    assert len(lines) == 2 and "step_3/model.safetensors" in lines[0] and "step_2" in lines[1]
    for step, error in ((3, "damaged"), (5, "no such checkpoint")):
        with pytest.raises(WeightsError, match=error):
            read_checkpoint(step_directory(tmp_path, step))


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / ".tmp-step_2").mkdir()
    step_directory(tmp_path, 1).rename(tmp_path / ".old-step_1")
    found = newest(tmp_path, print)
    assert found is not None and found.state["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    opened = read_checkpoint(saved(tmp_path, 1))
    with pytest.raises(WeightsError, match=r"step_1: .*2 missing in the file: weight, bias"):
        opened.load(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_an_optimizer_resumes_exactly(tmp_path: Path, name: str) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
        model.to(memory_format=torch.channels_last)
        return model, build_optimizer(OptimConfig(name=name, lr=0.1), model)  # type: ignore[arg-type]

    def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            images = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(step))
            model(images).square().sum().backward()
            optimizer.step()

    straight, optimizer = make()
    learn(straight, optimizer, range(3))
    tensors, plain = pack_optimizer(optimizer)
    state_dicts = {"model": straight.state_dict(), "optimizer": tensors}
    target = write_checkpoint(tmp_path / "step_3", state_dicts, {"optimizer": plain})
    learn(straight, optimizer, range(3, 6))

    opened = read_checkpoint(target)
    again, fresh = make()
    opened.load(again)
    restore_optimizer(fresh, opened)
    learn(again, fresh, range(3, 6))
    assert equal_states(again.state_dict(), straight.state_dict())
    with pytest.raises(WeightsError, match="parameter groups"):
        restore_optimizer(build_optimizer(OptimConfig(), nn.Linear(2, 2)), opened)


def test_every_generator_continues_where_it_was() -> None:
    def draws() -> list[float]:
        torch_draws = [float(torch.rand(())), float(torch.randn(()))]
        numpy_draws = [float(np.random.rand()), float(np.random.randn())]
        return [random.random(), random.gauss(0, 1), *numpy_draws, *torch_draws]

    draws()  # normal numbers come in pairs: the second of a pair is part of the state
    state = random_state(CPU)
    expected = draws()
    assert draws() != expected
    set_random_state(state, CPU)
    assert draws() == expected


@pytest.mark.parametrize(
    ("state", "writer"),
    [({"format": 1}, "format 1 of a development version before"), ({"format": 99, "version": "9.8"}, "9.8")],
)
def test_the_format_of_another_version_is_refused_with_its_name(
    tmp_path: Path, state: dict[str, Any], writer: str
) -> None:
    saved(tmp_path, 1)
    newer = write_directory(tmp_path / "step_2", lambda to: (to / STATE).write_text(json.dumps(state)))
    for read in (read_checkpoint, lambda _: newest(tmp_path, print)):
        with pytest.raises(VersionError, match=writer) as error:
            read(newer)
        assert str(newer) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "{}", '{"format": "1"}'])
def test_a_damaged_state_under_a_sound_manifest_is_named(tmp_path: Path, text: str) -> None:
    write_directory(tmp_path / "step_1", lambda to: (to / STATE).write_text(text))
    with pytest.raises(WeightsError, match=r"state\.json"):
        read_checkpoint(tmp_path / "step_1")
