"""For every test."""

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaformer.process import keep_freed_memory, sleep_rather_than_spin

keep_freed_memory()  # as the command line does: training tests run far faster where memory is scarce
sleep_rather_than_spin()

pytest_plugins = ["toys"]
RANK = "import runpy, sys; file, name, *rest = sys.argv[1:]; runpy.run_path(file)[name](*rest)"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Same bits wherever a test runs, and no contention beside others."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `datasets` keep what it prepares with the tests."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "arrow"))


@pytest.fixture
def two_ranks() -> Callable[..., list[str]]:
    """Call a function of a test's file in two processes, as torchrun would; gives what each printed."""

    def start(function: Callable[..., None], *words: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        whole = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        file = inspect.getfile(function)
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", RANK, file, function.__name__, *words],
                env={**os.environ, **whole, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            ends = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert [process.returncode for process in processes] == [0, 0], ends
        return [out for out, _ in ends]

    return start
