"""Checkpoints: tensors, manifest and the order of a save."""

import errno
import json
import random
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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
from metaformer.checkpoint.manifest import (
    MANIFEST,
    OLD,
    recover,
    remove_directory,
    verify,
    write_directory,
)
from metaformer.checkpoint.tensors import TensorSpec, TensorStore
from metaformer.config import OptimConfig
from metaformer.distributed import join
from metaformer.errors import MetaFormerError, OutputError, VersionError, WeightsError
from metaformer.storage import TEMPORARY
from metaformer.training.optim import build_optimizer
from toys import equal_states


def tensors() -> dict[str, Tensor]:
    return {
        "half": torch.randn(3, 5).bfloat16(),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store, own = TensorStore(tmp_path, "model"), tensors()
    assert not store.exists()
    store.write(own)
    assert store.exists() and [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert store.specs() == {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in own.items()}
    read = store.read()
    assert all(torch.equal(read[name], value) for name, value in own.items())


def test_tensors_are_filled_where_they_lie(tmp_path: Path) -> None:
    store, own = TensorStore(tmp_path, "model"), tensors()
    store.write(own)
    target = {name: torch.zeros_like(value).requires_grad_(name == "last") for name, value in own.items()}
    store.fill({"last": target["last"], "half": target["half"]})
    assert torch.equal(target["last"], own["last"]) and torch.equal(target["half"], own["half"])
    assert target["last"].is_contiguous(memory_format=torch.channels_last) and int(target["count"]) == 0


def test_missing_or_damaged_tensors_are_refused(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "ema")
    for use in (store.read, store.specs, lambda: store.fill({})):
        with pytest.raises(WeightsError, match=r"holds no ema\.safetensors"):
            use()
    store.file.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    for use in (store.read, store.specs, lambda: store.fill({"x": torch.empty(1)})):
        with pytest.raises(WeightsError, match=r"ema\.safetensors: damaged"):
            use()


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "ema")
    store.folder.mkdir()
    (store.folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"nonsense")
    for use in (store.read, store.specs, lambda: store.fill({"x": torch.empty(1)})):
        with pytest.raises(WeightsError, match=r"ema: damaged"):
            use()


CPU = torch.device("cpu")


def saved(folder: Path, step: int) -> Path:
    state_dicts = {"model": {"w": torch.full((64,), float(step))}}
    return write_checkpoint(step_directory(folder, step), state_dicts, {"step": step})


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    own = tensors()
    target = write_checkpoint(tmp_path / "step_1", {"model": own}, {"step": 1, "text": "é", "x": 0.1})
    opened = read_checkpoint(target)
    written = {"format": FORMAT, "version": metadata.version("metaformer")}
    assert opened.state == {**written, "step": 1, "text": "é", "x": 0.1}
    read = opened.tensors("model")
    assert equal_states(read, own) and all(read[name].dtype == own[name].dtype for name in read)
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


def fill(directory: Path) -> None:
    (directory / "a.bin").write_bytes(bytes(range(64)))
    (directory / "b.txt").write_text("b")


def test_what_was_written_verifies_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "x" / "whole", fill)
    verify(target)
    assert {file.name for file in target.iterdir()} == {"a.bin", "b.txt", MANIFEST}
    assert [file.name for file in target.parent.iterdir()] == ["whole"]


def test_folders_are_part_of_it(tmp_path: Path) -> None:
    def fill_folder(directory: Path) -> None:
        (directory / "model").mkdir()
        fill(directory / "model")

    target = write_directory(tmp_path / "whole", fill_folder)
    files = json.loads((target / MANIFEST).read_text())["files"]
    assert files.keys() == {"model/a.bin", "model/b.txt"}
    verify(target)
    (target / "model" / "a.bin").write_bytes(bytes(64))
    with pytest.raises(WeightsError, match=r"model/a\.bin: damaged"):
        verify(target)


@pytest.mark.parametrize("name", ["x.safetensors", "state.json", "model/x.safetensors"])
def test_a_file_that_was_not_written_is_not_taken(tmp_path: Path, name: str) -> None:
    target = write_directory(tmp_path / "whole", fill)
    (target / "notes.txt").touch()  # a user's own
    verify(target)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).touch()
    with pytest.raises(WeightsError, match="is no part of this checkpoint"):
        verify(target)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"files": {"a.bin": {"bytes": 1e999, "sha256": ""}}}',
        '{"files": {"../other": {"bytes": 0, "sha256": ""}}}',
        json.dumps({"files": {"../other": {"bytes": 0, "sha256": ""}}}, indent=1) + "\n",
        '{"files": []}',
        "{}",
        "",
        "\xff",
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    target = write_directory(tmp_path / "whole", fill)
    (target / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"manifest\.json: damaged"):
        verify(target)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "b", "nul\0l", "./a.bin", "a.bin/b", "\ud800"])
def test_a_manifest_of_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    target = write_directory(tmp_path / "whole", fill)
    content = {"files": {name: {"bytes": 0, "sha256": ""}}}
    (target / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(WeightsError, match=r"missing|damaged"):
        verify(target)


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    for file in ("a.bin", MANIFEST):
        good = (target / file).read_bytes()
        for place in [*range(0, len(good), 3), len(good) - 1]:
            changed = bytearray(good)
            changed[place] ^= 1 << (place % 8)
            (target / file).write_bytes(changed)
            with pytest.raises(WeightsError, match=str(target)):
                verify(target)
            (target / file).write_bytes(good[:place])
            with pytest.raises(WeightsError, match=str(target)):
                verify(target)
        (target / file).write_bytes(good)
    verify(target)


def test_missing_files_are_found(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    (target / "b.txt").unlink()
    with pytest.raises(WeightsError, match=r"b\.txt: missing"):
        verify(target)
    (target / MANIFEST).unlink()
    with pytest.raises(WeightsError, match="unfinished"):
        verify(target)


def test_a_write_that_fails_leaves_the_old_directory(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)

    def full(directory: Path) -> None:
        (directory / "a.bin").write_bytes(b"123")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"whole: cannot write \(No space left on device\) after 3 bytes"):
        write_directory(target, full)
    verify(target)
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    write_directory(target, lambda directory: (directory / "c").touch())
    verify(target)
    assert {file.name for file in target.iterdir()} == {"c", MANIFEST}


def test_a_replacement_interrupted_between_its_renames_is_undone(tmp_path: Path) -> None:
    target = write_directory(tmp_path / "whole", fill)
    target.rename(tmp_path / f"{OLD}whole")
    (tmp_path / f"{TEMPORARY}whole").mkdir()
    recover(target)
    verify(target)
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]


def test_a_removal_leaves_nothing(tmp_path: Path) -> None:
    remove_directory(write_directory(tmp_path / "whole", fill))
    assert not list(tmp_path.iterdir())


def test_the_manifest_has_sizes_and_digests(tmp_path: Path) -> None:
    files = json.loads((write_directory(tmp_path / "whole", fill) / MANIFEST).read_text())["files"]
    assert files["a.bin"]["bytes"] == 64 and len(files["a.bin"]["sha256"]) == 64


def write_together(folder: str) -> None:
    from metaformer.checkpoint import manifest

    rank = join("cpu").rank
    target = Path(folder) / "whole"

    def part(directory: Path) -> None:
        (directory / "parts").mkdir(exist_ok=True)
        (directory / "parts" / f"{rank}.bin").write_bytes(bytes([rank]))

    write_directory(target, part, together=True)
    verify(target)
    assert sorted(file.name for file in (target / "parts").iterdir()) == ["0.bin", "1.bin"]

    def broken(directory: Path) -> None:
        part(directory)
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    expected = r"whole: cannot write \(No space left on device\)"
    with pytest.raises(MetaFormerError, match=expected if rank else f"rank 1: .*{expected}"):
        write_directory(target, broken, together=True)
    verify(target)

    # machines that do not share a disk: each has a folder of its own
    manifest.PATIENCE = 0.5
    own = Path(folder) / f"machine_{rank}" / "whole"

    def elsewhere(directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        part(directory)

    with pytest.raises(MetaFormerError, match="on a disk that all share"):
        write_directory(own, elsewhere, together=True)
    assert not list(own.parent.iterdir())


def test_ranks_write_one_directory_or_none(tmp_path: Path, two_ranks: Callable[..., list[str]]) -> None:
    two_ranks(write_together, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "machine_0", "machine_1"}
