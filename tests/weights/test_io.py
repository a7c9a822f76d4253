"""Files of weights, and what unpickling lets in."""

import argparse
import contextlib
import os
import pickle
import random
import sys
import types
import zipfile
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metaformer.cli import main
from metaformer.errors import ConfigError, OutputError, WeightsError
from metaformer.factory import create_model, create_segmenter
from metaformer.inference.model import load_model
from metaformer.weights.hub import from_pretrained
from metaformer.weights.io import read_metadata, read_state, unwrap, write_state
from metaformer.weights.load import load_weights
from metaformer.weights.unpickle import load_pickled
from toys import build_task, tiny_config

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pth.tar", "x.pt", "x.bin"])
def test_written_files_read_back(tmp_path: Path, name: str) -> None:
    write_state(tmp_path / "new" / name, TENSORS, {"architecture": "poolformer_s12"})
    read = read_state(tmp_path / "new" / name).tensors
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], value) for key, value in TENSORS.items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    kept = "poolformer_s12" if name.endswith(".safetensors") else None
    assert read_metadata(tmp_path / "new" / name).get("architecture") == kept


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_ema", "state_dict_ema"])
def test_wrappers_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 3, wrapper: TENSORS, "optimizer": {"state": {}}}, tmp_path / "x.pth")
    file = read_state(tmp_path / "x.pth")
    assert file.wrapper == wrapper and file.tensors.keys() == TENSORS.keys()
    file = unwrap({"model_ema": {"a": torch.zeros(1)}, "model": {"a": torch.ones(1)}}, "x")
    assert file.wrapper == "model" and float(file.tensors["a"]) == 1, "raw weights before averaged ones"


def test_a_directory_means_the_weights_in_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights in this directory"):
        read_state(tmp_path)
    write_state(tmp_path / "model.safetensors", TENSORS)
    assert read_state(tmp_path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "LFS"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"hello, this is a text about weights", "not a checkpoint"),
        (b"PK\x03\x04 no archive", "damaged"),
        (b"\x80\x02 no pickle", "damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{no header}......", "damaged"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{no header}......", "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_gives_one_line(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{message}|not a checkpoint") as caught:
        read_state(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_every_truncation_of_safetensors_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_state(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        read_state(tmp_path / "nothing.pth")


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"epoch": 1}, {"state_dict": {"a": 1}}])
def test_files_without_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        read_state(tmp_path / "x.pth")


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**9)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="not an ordinary tensor"):
        read_state(tmp_path / "x.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    write_state(path, TENSORS)
    before = path.read_bytes()

    for error in (OSError(28, "No space left on device"), RuntimeError("No space left on device")):
        fail = Mock(side_effect=error)
        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(OutputError, match=r"x\.pth: .*No space left"):
            write_state(path, TENSORS)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pth"]


def test_no_directory_can_be_made_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_state(tmp_path / "file" / "x.pth", TENSORS)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "old.pth"])
def test_damaged_bytes_give_tensors_or_one_clear_error(tmp_path: Path, name: str) -> None:
    path, chance = tmp_path / name, random.Random(0)
    if name == "old.pth":
        torch.save({"state_dict": TENSORS, "args": [1, "a"]}, path, _use_new_zipfile_serialization=False)
    else:
        write_state(path, TENSORS)
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(WeightsError):
            assert read_state(path).tensors


def test_what_is_written_follows_the_users_mask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_state(tmp_path / "a.safetensors", {"w": torch.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.timeout(60)
def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, object] = {}
    loop["state_dict"] = {"model": loop}
    torch.save(loop, tmp_path / "loop.pth")
    with pytest.raises(WeightsError, match="holds no named tensors"):
        read_state(tmp_path / "loop.pth")


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


def test_of_raw_and_averaged_weights_it_says_which_were_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "both.pth.tar"
    both = {"state_dict": {"a": torch.zeros(2)}, "state_dict_ema": {"a": torch.ones(2)}, "epoch": 3}
    torch.save(both, file)
    assert read_state(file).tensors["a"].sum() == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(file) in line and "state_dict)" in line and "state_dict_ema" in line and "--ema" in line
    caplog.clear()
    for ema, taken in ((True, "state_dict_ema"), (False, "state_dict")):
        state = read_state(file, ema)
        assert state.wrapper == taken and float(state.tensors["a"].mean()) == ema
    for alone, other in (("state_dict", True), ("model_ema", False)):
        torch.save({alone: {"a": torch.zeros(2)}}, file)
        assert read_state(file).wrapper == alone == read_state(file, not other).wrapper
        with pytest.raises(WeightsError, match="weights alone"):
            read_state(file, other)
    torch.save({"a": torch.zeros(2)}, file)
    assert read_state(file, False).tensors
    with pytest.raises(WeightsError, match="raw weights alone"):
        read_state(file, True)
    assert not caplog.records


def test_every_door_takes_the_choice(tmp_path: Path, pets: Path) -> None:
    raw, average = (create_model("poolformer_n", num_classes=3) for _ in range(2))
    file = tmp_path / "both.pth.tar"
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": average.state_dict()}, file)

    def same(state: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
        return all(torch.equal(state[name], value) for name, value in model.state_dict().items())

    for ema, expected in ((True, average), (False, raw), (None, raw)):
        flags: dict[str, Any] = {} if ema is None else {"ema": ema, "raw": not ema}
        model = create_model("poolformer_n", checkpoint_path=file, num_classes=3, ema=ema)
        assert same(model.state_dict(), expected)
        load_weights(model, file, ema=ema)
        assert same(model.state_dict(), expected)
        data = (pets, "val")
        assert same(load_model("poolformer_n", file, data=data, **flags).model.state_dict(), expected)
        out, choice = tmp_path / "out.safetensors", [f"--{name}" for name, on in flags.items() if on]
        assert main(["convert", str(file), str(out), "--to", "metaformer", *choice]) == 0
        assert same(read_state(out).tensors, expected)
        dense = create_segmenter("semantic_fpn", "poolformer_n", 3, backbone_checkpoint=file, ema=ema)
        assert torch.equal(dense.backbone.stem.conv.weight, expected.stem.conv.weight)
        own: dict[str, Any] = {"overrides": {}, "checkpoint": str(file), "ema": ema}
        config = tiny_config("classify", pets)
        config = replace(config, model=replace(config.model, **own))
        assert same(build_task(config).model.state_dict(), expected)
    with pytest.raises(ConfigError, match="exclude each other"):
        load_model("poolformer_n", file, ema=True, raw=True)


def test_the_weights_of_a_step_are_those_that_were_evaluated_or_asked_for(classify_run: Path) -> None:
    step = classify_run / "checkpoints" / "step_4"
    average, own, raw = (read_state(step, ema).tensors["head.fc.weight"] for ema in (True, None, False))
    assert torch.equal(average, own) and not torch.equal(average, raw)
    assert torch.equal(read_state(classify_run, True).tensors["head.fc.weight"], average)
    assert torch.equal(from_pretrained(step, ema=False).head.fc.weight, raw)
    assert torch.equal(load_model(step, raw=True).model.head.fc.weight, raw)
