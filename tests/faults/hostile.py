"""Files that try to run code or to exhaust the memory of their reader."""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.checkpoint.manifest import MANIFEST, write_directory

DEEP = "[" * 200_000
BOMB = 2**28


@dataclass(frozen=True)
class Canary:
    """A file that appears if code was run."""

    path: Path

    @property
    def command(self) -> str:
        return f"touch {self.path}"

    @property
    def code(self) -> str:
        """Python expression that creates it."""
        return f"__import__('os').system({self.command!r})"

    def attack(self) -> "Attack":
        return Attack(self.command)


class Attack:
    """An object whose unpickling runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return os.system, (self.command,)


class Reduced:
    """An object whose unpickling calls any function."""

    def __init__(self, function: Callable[..., object], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return self.function, self.arguments


def weights(folder: Path, canary: Canary) -> list[Path]:
    """Files of weights."""
    attack = canary.attack()
    files: dict[str, Callable[[Path], object]] = {
        "zip.pt": lambda path: torch.save({"a": torch.ones(1), "x": attack}, path),
        "legacy.pth": lambda path: torch.save(
            {"a": torch.ones(1), "x": attack}, path, _use_new_zipfile_serialization=False
        ),
        "plain.bin": lambda path: path.write_bytes(pickle.dumps(attack)),
        "protocol0.ckpt": lambda path: path.write_bytes(pickle.dumps(attack, protocol=0)),
        "nested.pt": lambda path: torch.save(Reduced(_bytes_of_storage(), pickle.dumps(attack)), path),
        "numpy.pt": lambda path: torch.save({"x": np.array([attack], dtype=object)}, path),
        "evaluates.pt": lambda path: torch.save(Reduced(eval, canary.code), path),
        "tar.tar": lambda path: _old_tar(path, pickle.dumps(attack, protocol=2)),
        "objects.npz": lambda path: _npz(path, attack),
        "objects.npz.pth": lambda path: _npz(path, attack),
        "bomb.pt": _bomb,
        "header.safetensors": lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        "long.safetensors": lambda path: path.write_bytes(struct.pack("<Q", 2**27) + b"{" + bytes(2**20)),
        "deep.safetensors": lambda path: _safetensors(path, ('{"a":' + DEEP).encode()),
        "outside.safetensors": lambda path: _tensor(path, [2**20], [0, 2**22]),
        "overlap.safetensors": lambda path: _tensor(path, [4], [-8, 8]),
        "huge.safetensors": lambda path: _tensor(path, [2**62, 4], [0, 16]),
        "module.safetensors": lambda path: path.write_text(f"import os\nos.system({canary.command!r})\n"),
    }  # fmt: skip
    folder.mkdir(parents=True)
    for name, write in files.items():
        write(folder / name)
    return [folder / name for name in files]


def _npz(path: Path, attack: Attack) -> None:
    with path.open("wb") as stream:
        np.savez(stream, x=np.array([attack], dtype=object))


def _bytes_of_storage() -> Callable[..., object]:
    return torch.storage._load_from_bytes  # unpickles again, with weights_only off


def _old_tar(path: Path, program: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(program)
            archive.addfile(entry, io.BytesIO(program))


def _bomb(path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(BOMB // 4)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def _safetensors(path: Path, header: bytes, body: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def _tensor(path: Path, shape: list[int], offsets: list[int]) -> None:
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    _safetensors(path, json.dumps(header).encode(), bytes(16))


def checkpoints(folder: Path, valid: Path, canary: Canary) -> list[Path]:
    """Checkpoint directories in our own format."""
    code = canary.code
    states: dict[str, Callable[[dict[str, Any]], object]] = {
        "mixers": lambda state: state["card"]["model"].update(mixers=f"os.system({canary.command!r})"),
        "mixer_option": lambda state: state["card"]["model"].update(mixers=f"pooling(size={code})"),
        "dotted": lambda state: state["card"]["model"].update(norm="os.system", act="subprocess:Popen"),
        "name": lambda state: state["card"].update(name=f"../../{canary.path}", task="os.system"),
        "target": lambda state: state["card"].update(
            model={"_target_": "os.system", "_args_": [canary.command], "class_path": "os.system"}
        ),
        "import": lambda state: state["config"].update({"import": "evil.py", "trust_remote_code": True}),
        "config": lambda state: state["config"]["model"].update(
            mixers=code, overrides={"norm": code, "class_path": "os.system"}
        ),
        "kinds": lambda state: state.update(card=[code], config=code, optimizer=code),
    }
    directories = []
    for name, change in states.items():
        target = folder / f"state_{name}"
        write_directory(target, lambda directory, change=change: _copy(valid, directory, change))  # type: ignore[misc]
        (target / "evil.py").write_text(f"import os\nos.system({canary.command!r})\n")
        torch.save({"x": canary.attack()}, target / "model.pt")  # where other libraries look first
        directories.append(target)
    secret = folder / "secret"
    secret.write_text("not for you")
    manifests = {
        "deep": DEEP,
        "infinite": '{"files": {"state.json": {"bytes": 1e999, "sha256": "0"}}}',
        "long_number": '{"files": {"state.json": {"bytes": ' + "9" * 5000 + ', "sha256": "0"}}}',
        "outside": '{"files": {"../secret": {"bytes": 11, "sha256": "0"}}}',
        "device": '{"files": {"/dev/zero": {"bytes": 1, "sha256": "0"}}}',
        "empty": '{"files": {}}',
        "number": "7",
    }
    for name, text in manifests.items():
        target = folder / f"manifest_{name}"
        shutil.copytree(valid, target)
        (target / MANIFEST).write_text(text)
        directories.append(target)
    target = folder / "state_deep"
    write_directory(target, lambda directory: _deep(valid, directory))
    directories.append(target)
    pipe = folder / "pipe"  # opening it would block
    shutil.copytree(valid, pipe)
    (pipe / "model.safetensors").unlink()
    os.mkfifo(pipe / "model.safetensors")
    return [*directories, pipe]


def _copy(valid: Path, directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    for file in valid.iterdir():
        if file.name != MANIFEST:
            shutil.copy(file, directory / file.name)
    state = json.loads((directory / "state.json").read_text())
    change(state)
    (directory / "state.json").write_text(json.dumps(state))


def _deep(valid: Path, directory: Path) -> None:
    _copy(valid, directory, lambda state: None)
    (directory / "state.json").write_text(DEEP)


def configurations(folder: Path, canary: Canary) -> list[Path]:
    """Files for `metaformer train RECIPE FILE`."""
    code = canary.code
    texts = {
        "apply.yaml": f"seed: !!python/object/apply:os.system ['{canary.command}']\n",
        "new.yaml": f"model: !!python/object/new:subprocess.Popen [['touch', '{canary.path}']]\n",
        "module.yaml": "model: !!python/module:os\n",
        "class.yaml": f"model:\n  class_path: os.system\n  init_args: {{command: '{canary.command}'}}\n",
        "mixer.yaml": f'model: {{name: poolformer_n, mixers: "{code}"}}\n',
        "overrides.yaml": f'model: {{overrides: {{norm: "os.system", mixers: "{code}"}}}}\n',
        "import.yaml": "import: evil.py\n",
        "expression.yaml": f'seed: "${{{{{code}}}}}"\n',
        "deep.yaml": DEEP,
        "laughs.yaml": _laughs(),
        "deep.json": '{"model": ' + DEEP,
    }
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "evil.py").write_text(f"import os\nos.system({canary.command!r})\n")
    return [folder / name for name in texts]


def _laughs() -> str:
    """A billion elements, by aliases."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join([*lines, "seed: *a9", ""])
