"""Servers in tests: in a thread with networks in forks, or the command itself; and clients of few lines."""

import asyncio
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from PIL import Image

from metaformer.deploy.server import child
from metaformer.deploy.server.protocol import LimitedProtocol
from metaformer.deploy.server.server import Server
from metaformer.deploy.server.settings import ModelSettings, Settings
from warm import python

LIMIT = 300_000
"""Bytes of a body, in servers that are sent too much."""
START = 120.0
"""Seconds until a server must be ready."""
OWN = {"device": "cpu", "amp": "none", "checkpoint": None, "class_names": None, "ema": False, "raw": False}


class Answer(NamedTuple):
    """What a server answers."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Requests to a server, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1" and parts.port
        self.host, self.port = parts.hostname, parts.port

    def __call__(
        self, path: str, body: Any = None, method: str | None = None, timeout: float = 60, **headers: str
    ) -> Answer:
        """GET, or POST where there is a body; `_` in names of headers stands for `-`."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def image(self, path: str, image: Image.Image | bytes, **headers: str) -> Answer:
        """POST an image as the body."""
        body = image if isinstance(image, bytes) else encoded(image)
        return self(path, body, **{"content_type": "image/png", **headers})

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=30)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and read until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes the connection, or resets it."""
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def post(*headers: str, body: bytes = b"") -> bytes:
    """A request for a prediction; headers say how long its body is."""
    lines = ["POST /predict HTTP/1.1", "host: x", "content-type: image/jpeg", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def count_reads(patch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what servers in this process read from their sockets from now on."""
    sizes: list[int] = []
    before = LimitedProtocol.data_received

    def counted(self: LimitedProtocol, data: bytes) -> None:
        sizes.append(len(data))
        before(self, data)

    patch.setattr(LimitedProtocol, "data_received", counted)
    return sizes


class Running(NamedTuple):
    """A server in a thread."""

    client: Client
    server: Server

    def model(self, name: str) -> Any:
        return self.server.models[name]

    def until(self, condition: Any, seconds: float = 30) -> float:
        """Wait until something is so; returns the seconds that it took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < seconds
            time.sleep(0.02)
        return time.monotonic() - begun


def model_settings(
    models: Mapping[str, str | Path], max_batch: int = 8, **options: Any
) -> list[ModelSettings]:
    """What networks are started with."""
    loading = {name: options.pop(name, value) for name, value in OWN.items()}
    return [
        ModelSettings(
            name=name,
            source=str(source),
            max_batch=max_batch,
            max_pixels=Settings.max_pixels,
            loading=loading,
            options=options,
        )
        for name, source in models.items()
    ]


@contextmanager
def running(
    models: Mapping[str, str | Path], options: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[Running]:
    """A server of networks, in a thread; `settings` are those of `Settings`."""
    limits = Settings(port=0, **settings)
    address: list[str] = []
    ready = threading.Event()

    def start(url: str) -> None:
        address.append(url)
        ready.set()

    server = Server(limits, model_settings(models, limits.max_batch, **(options or {})), start)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(server.run())
        except BaseException as error:
            errors.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "PYTHON", python())
        thread.start()
        assert ready.wait(START)
        if errors:
            thread.join()
            raise errors[0]
        try:
            yield Running(Client(address[0]), server)
        finally:
            server.stop()
            thread.join(30)
            assert not thread.is_alive()


class Command:
    """`metaformer serve` as a process; `url` when it has said that it is ready."""

    def __init__(self, *arguments: str | Path, start: Sequence[str] = (), **options: Any) -> None:
        words = [*(start or python()), "-m", "metaformer", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(
            [*words, *(() if "--port" in words else ("--port", "0"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", self.line)
        self.url = found[0] if found else ""

    @property
    def client(self) -> Client:
        return Client(self.url)

    def processes(self) -> list[int]:
        """The server's process and those of its networks; of a real process alone."""
        found = [self.process.pid]
        for pid in found:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, float]:
        """Send a signal; returns exit status, further output and seconds until the end."""
        begun = time.monotonic()
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, rest, time.monotonic() - begun

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
