"""Pickled files: what is let in, what is refused, and that nothing named in them runs."""

import argparse
import pickle
import sys
import types
import zipfile
from collections import defaultdict, deque
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from metaformer.errors import WeightsError
from metaformer.weights.unpickle import load_pickled

CANARY = "canary"


class Attack:
    """Unpickled the ordinary way, it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {self.target}",)


class Indirect(Attack):
    """The same by way of a function that PyTorch's own block list does not name."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        import subprocess

        return subprocess.check_output, (("touch", str(self.target)),)  # type: ignore[return-value]


def test_a_command_line_beside_the_tensors_is_let_in(tmp_path: Path) -> None:
    path = tmp_path / "CycleMLP_B1.pth"
    args = argparse.Namespace(lr=1e-3, output_dir=PurePosixPath("x"), data=[1, 2])
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1e-3, nested=args.data)}, path)
    loaded = load_pickled(path)
    assert torch.equal(loaded["model"]["a"], torch.ones(2))
    assert not isinstance(loaded["args"], argparse.Namespace)


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_objects_of_training_files_are_let_in(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "epoch.pth"
    history = {
        "loss": np.arange(3.0),
        "scalar": np.float64(2),
        "last": deque([1, 2]),
        "by": defaultdict(list, a=[1]),
    }
    content = {
        "state_dict": {"a": torch.arange(4.0)},
        "message_hub": history,
        "meta": {"seed": 1, "dir": tmp_path},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_pickled(path)["state_dict"]["a"], torch.arange(4.0))


@pytest.mark.parametrize("attack", [Attack, Indirect])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, attack: type[Attack], zipped: bool) -> None:
    path, canary = tmp_path / "bad.pth", tmp_path / CANARY
    torch.save({"a": torch.ones(1), "x": attack(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"system|check_output"):
        load_pickled(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path, canary = tmp_path / "bad.pth", tmp_path / CANARY
    path.write_bytes(pickle.dumps(Attack(canary), protocol=protocol))
    with pytest.raises(WeightsError, match="system"):
        load_pickled(path)
    assert not canary.exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Sequential(torch.nn.Linear(1, 1)), path)
    with pytest.raises(WeightsError, match="Sequential"):
        load_pickled(path)


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    whole, bomb = tmp_path / "whole.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(16_000_000)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(WeightsError, match="64,"):
        load_pickled(bomb)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_an_error_in_one_line(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.ones(300)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(4, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as caught:
            load_pickled(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_log_of_mmengine_is_let_in_without_mmengine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)
    buffer_class = type("HistoryBuffer", (), {"__module__": name})
    module.HistoryBuffer = buffer_class  # type: ignore[attr-defined]
    path, buffer = tmp_path / "iter_40000.pth", buffer_class()
    buffer.__dict__["_log_history"] = np.arange(5.0)
    with monkeypatch.context() as patch:
        for part in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        patch.setitem(sys.modules, name, module)
        torch.save({"state_dict": {"a": torch.ones(1)}, "message_hub": {"lr": buffer}}, path)
    assert name not in sys.modules
    assert torch.equal(load_pickled(path)["state_dict"]["a"], torch.ones(1))
