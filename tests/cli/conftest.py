"""For tests of commands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from metaformer.cli import main
from toys import TINY, once

TRAIN = (
    "train", "demo/classify", f"--model.overrides={TINY}", "--data.image_size=32", "--data.batch_size=8",
    "--data.workers=0", "--schedule.epochs=1", "--runtime.threads=1",
)  # fmt: skip


class Result(NamedTuple):
    """What a command printed and returned."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line that a failed command leaves on standard error."""
        lines = self.err.splitlines()
        assert self.status in (1, 2) and "Traceback" not in self.err, self
        assert not re.search(r"\b[a-z_]+=(True|False|'|[,)])", lines[-1]), (
            f"an argument in Python: {lines[-1]}"
        )
        assert [line for line in lines if line.startswith("metaformer: error: ")] == lines[-1:], self
        return lines[-1]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        status = main(list(map(str, args)))
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def train_args() -> tuple[str, ...]:
    """A short training of a tiny classifier; without data and run directory."""
    return TRAIN


@pytest.fixture(scope="session")
def run(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on pets; not to be changed."""

    def write(out: Path) -> None:
        more = (f"--data.root={pets}", f"--out={out}", "--schedule.epochs=3", "--seed=3", "--optim.lr=0.01")
        assert main([*TRAIN, *more]) == 0

    return once(tmp_path_factory, "cli_run", write)
