"""`metaformer serve` as a process."""

import shlex
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from metaformer.deploy.server.server import split_name
from metaformer.deploy.server.settings import Settings, read_size
from metaformer.errors import ConfigError
from serving import Command


def test_sigterm_drains_and_leaves_nothing(
    untrained: dict[str, Path], photos: list[Image.Image], tmp_path: Path
) -> None:
    """A request that waits for the second of its batch has its answer after the signal."""
    options = ("--max-batch", "2", "--max-delay-ms", "1500", "--verbose", "--top-k", "3")
    with Command(f"digits={untrained['classify']}", *options, cwd=tmp_path) as server:
        assert server.line == f"serving digits on {server.url}\n"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.client.image, "/predict", photos[0])
            time.sleep(0.5)
            status, rest, seconds = server.stop()
            answer = waiting.result()
        assert answer.status == 200 and len(answer.json()["prediction"]["classes"]) == 3
        assert (status, seconds < 10) == (0, True), rest
        assert rest.startswith("POST /predict 200 ") and rest.count("\n") == 1
        with pytest.raises(ConnectionRefusedError):
            server.client.connect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("nothing/here",), 1, "neither a run"),
        (("a/b=x",), 1, "cannot be called 'a/b'"),
        (("x=1", "x=2"), 1, "two networks are called x"),
        (("x", "--queue", "0"), 1, "queue: 0 must be"),
        (("x", "--max-upload", "much"), 1, "--max-upload: 'much' is no size"),
        (("x", "--host", "256.0.0.1"), 1, "host 256.0.0.1"),
        (("x", "--quue", "3"), 2, "did you mean --queue?"),
        ((), 2, "[NAME=]RUN"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], status: int, words: str) -> None:
    with Command(*arguments) as server:
        assert server.process.wait(60) == status
        assert server.line.startswith("metaformer: error: ") and words in server.line
        assert server.process.stdout is not None and server.process.stdout.read() == ""


def test_a_port_that_is_taken(untrained: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        server = Command(untrained["classify"], "--port", port)
        assert server.process.communicate(timeout=60) and server.process.returncode == 1
    assert "in use" in server.line


def test_the_servers_process_does_without_pytorch() -> None:
    code = """
import sys
from metaformer.cli.serve import _parse
assert _parse(["run", "--port", "0"])["port"] == 0
options = _parse(["x=run", "--top-k", "3", "--threshold", "0.5", "--verbose"])
assert (options["top_k"], options["threshold"], options["models"]) == (3, 0.5, ["x=run"]), options
import metaformer.deploy.server.app, metaformer.deploy.server.server
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_sizes() -> None:
    assert [read_size(text, "x") for text in ("20MB", "1.5 kb", "7", 7)] == [20_000_000, 1500, 7, 7]
    with pytest.raises(ConfigError, match="max_upload"):
        read_size("-1MB", "max_upload")
    with pytest.raises(ConfigError, match="timeout: 0 must be"):
        Settings(timeout=0)
    with pytest.raises(ConfigError, match="max_upload: 0 must be"):
        Settings(max_upload=0)
    for wrong in ("8", 2.5):
        with pytest.raises(ConfigError, match=r"queue: .* an integer"):
            Settings(queue=wrong)  # type: ignore[arg-type]


def test_names_and_sources(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert split_name("x=runs/y=z") == ("x", "runs/y=z")
    assert split_name("runs/y") == ("y", "runs/y")
    assert split_name(str(tmp_path / "a=b"))[0] == "a=b"


def test_connections_without_open_files_are_an_error(untrained: dict[str, Path]) -> None:
    command = ["-m", "metaformer", "serve", str(untrained["classify"]), "--port", "0"]
    limited = f"ulimit -n 100 && exec {shlex.join([sys.executable, *command])}"
    done = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "256 connections need 384 open files" in done.stderr
