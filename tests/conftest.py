"""Settings and fixtures of every test; data sets are in toys.py."""

import gc
import inspect
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import warm
from metaformer.process import keep_freed_memory, sleep_rather_than_spin

keep_freed_memory()  # as the command line does; training tests are much faster where memory is scarce
sleep_rather_than_spin()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start

pytest_plugins = ["toys"]
CALL = "import runpy, sys; file, name, *rest = sys.argv[1:]; runpy.run_path(file)[name](*rest)"


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what stays: modules and thousands of tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The processes of pytest-xdist fork from the same."""
    node.workerinput["forks"] = warm.share()


def pytest_configure(config: pytest.Config) -> None:
    warm.addresses += getattr(config, "workerinput", {}).get("forks", [])


def pytest_sessionfinish() -> None:
    gc.unfreeze()
    warm.stop()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Compute with one thread: the same bits on any machine, no contention with parallel tests."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the cache of Hugging Face's `datasets` below the tests' temporary folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "arrow"))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that time networks are forks; how long they wait for work is their server's setting."""
    start = ("env", f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}", *warm.python(), "-m")
    for name in ("metaformer.bench.exports", "benchmarks.suite.process"):
        monkeypatch.setattr(f"{name}.WORKER", (*start, name))


@pytest.fixture
def two_ranks() -> Callable[..., list[str]]:
    """Call a function of a test's file in two processes, as torchrun would; returns the output of each.

    The order of sets differs between them, as between processes of torchrun.
    """

    def start(function: Callable[..., None], *args: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        file = inspect.getfile(function)
        processes = [
            subprocess.Popen(
                [*warm.python(rank), "-W", "error", "-c", CALL, file, function.__name__, *args],
                env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert [process.returncode for process in processes] == [0, 0], outputs
        return [out for out, _ in outputs]

    return start
