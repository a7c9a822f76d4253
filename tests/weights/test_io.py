"""Reading and writing files of weights."""

import contextlib
import os
import random
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from metaformer.errors import OutputError, WeightsError
from metaformer.weights.io import read_metadata, read_state, unwrap, write_state

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pth.tar", "x.pt", "x.bin"])
def test_written_files_read_back(tmp_path: Path, name: str) -> None:
    write_state(tmp_path / "new" / name, TENSORS, {"architecture": "poolformer_s12"})
    read = read_state(tmp_path / "new" / name).tensors
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], value) for key, value in TENSORS.items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    assert read_metadata(tmp_path / "new" / name).get("architecture") in (None, "poolformer_s12")


def test_safetensors_keep_notes(tmp_path: Path) -> None:
    write_state(tmp_path / "x.safetensors", TENSORS, {"architecture": "poolformer_s12"})
    assert read_metadata(tmp_path / "x.safetensors")["architecture"] == "poolformer_s12"


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_ema", "state_dict_ema"])
def test_wrappers_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 3, wrapper: TENSORS, "optimizer": {"state": {}}}, tmp_path / "x.pth")
    file = read_state(tmp_path / "x.pth")
    assert file.wrapper == wrapper and file.tensors.keys() == TENSORS.keys()


def test_raw_weights_come_before_averaged_ones() -> None:
    file = unwrap({"model_ema": {"a": torch.zeros(1)}, "model": {"a": torch.ones(1)}}, "x")
    assert file.wrapper == "model" and float(file.tensors["a"]) == 1


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
