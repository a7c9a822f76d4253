"""Requests a second of `metaformer serve` beside the same batches in one process, and how it lives then."""

import asyncio
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.program import run_program
from metaformer.data.image import decode_image
from metaformer.errors import DataError
from metaformer.process import sleep_rather_than_spin
from metaformer.storage import write_text

DESCRIPTION = (
    "Many clients at once send JPEGs to a server, and the same images go in batches to a Predictor in one\n"
    "process, in turn; and how long the server takes to say that it lives meanwhile."
)
EXAMPLE = """  python -m benchmarks.serving
  python -m benchmarks.serving --source runs/demo-classify --clients 16 --requests 500"""
POST = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
PROBE = 0.02
"""Seconds between two questions whether the server lives."""


@dataclass(frozen=True)
class Serving:
    """What was measured, in rounds: the server, and one process, in turn."""

    source: str
    clients: int
    requests: int
    answered: int
    """Requests that got their prediction."""
    offline: tuple[float, ...]
    """Images a second of the same batches in one process, from the encoded images on; one for each round."""
    online: tuple[float, ...]
    """Requests a second."""
    p50_ms: float
    """Of a request."""
    p99_ms: float
    live_p99_ms: float
    """Of the question whether the server lives."""
    images_a_batch: float

    @property
    def ratio(self) -> float:
        """Median over the rounds of the server's speed by the process's."""
        return median(online / offline for online, offline in zip(self.online, self.offline, strict=True))

    def text(self) -> str:
        """Lines to read."""
        return "\n".join(
            [
                f"{self.source}: {self.clients} clients, {self.answered} of {self.requests} answered",
                f"one process  {median(self.offline):8.1f} images/s",
                f"served       {median(self.online):8.1f} images/s, {self.images_a_batch:.1f} images a batch",
                f"served by one process: {self.ratio:.2f}, median of {len(self.online)} rounds",
                f"request      p50 {self.p50_ms:.0f} ms, p99 {self.p99_ms:.0f} ms",
                f"/v2/health/live meanwhile  p99 {self.live_p99_ms:.1f} ms",
            ]
        )


def photos(count: int, size: tuple[int, int]) -> list[bytes]:
    """JPEGs that are smooth like photographs."""
    random = np.random.RandomState(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(random.randint(0, 256, (12, 16, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


class Offline:
    """A predictor that is given images in batches.

    Args:
        source: the network.
        batch: images of a batch.
    """

    def __init__(self, source: str, batch: int) -> None:
        from metaformer.deploy.optimize import optimize
        from metaformer.inference.predictor import Predictor

        self._batch = batch
        self._predictor: Predictor[Any] = Predictor(
            source, batch_size=batch, rewrite=partial(optimize, compile=False)
        )

    def measure(self, files: Sequence[bytes], count: int) -> float:
        """Images a second."""
        begun = time.perf_counter()
        for first in range(0, count, self._batch):
            chosen = [files[(first + i) % len(files)] for i in range(self._batch)]
            self._predictor([decode_image(file, "image") for file in chosen])
        return -(-count // self._batch) * self._batch / (time.perf_counter() - begun)


async def post(host: str, port: int, files: Sequence[bytes], numbers: "asyncio.Queue[int]") -> list[float]:
    """Be a client on one connection, until no request is left; returns the seconds of those answered."""
    reader, writer = await asyncio.open_connection(host, port)
    times = []
    while not numbers.empty():
        body = files[numbers.get_nowait() % len(files)]
        begun = time.perf_counter()
        writer.write(POST + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        if await read_status(reader) == 200:
            times.append(time.perf_counter() - begun)
    writer.close()
    return times


async def read_status(reader: asyncio.StreamReader) -> int:
    """Read an answer; returns its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    found = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    await reader.readexactly(int(found[1]) if found else 0)
    return int(head.split()[1])


async def probe(host: str, port: int, times: list[float]) -> None:
    """Ask again and again whether the server lives, each time on a new connection."""
    while True:
        begun = time.perf_counter()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await read_status(reader)
        times.append(time.perf_counter() - begun)
        writer.close()
        await asyncio.sleep(PROBE)


async def load(
    port: int, files: Sequence[bytes], clients: int, requests: int
) -> tuple[float, list[float], list[float]]:
    """Seconds of all requests, those of each, and those of the questions meanwhile."""
    numbers: asyncio.Queue[int] = asyncio.Queue()
    for number in range(requests):
        numbers.put_nowait(number)
    lives: list[float] = []
    probing = asyncio.create_task(probe("127.0.0.1", port, lives))
    begun = time.perf_counter()
    parts = await asyncio.gather(*(post("127.0.0.1", port, files, numbers) for _ in range(clients)))
    seconds = time.perf_counter() - begun
    probing.cancel()
    return seconds, [one for part in parts for one in part], lives


@contextmanager
def server(source: str, args: Namespace) -> Iterator[int]:
    """A server in processes of its own; gives its port."""
    command = [
        *(sys.executable, "-m", "metaformer", "serve", f"network={source}", "--port", "0"),
        *("--max-batch", str(args.batch), "--queue", str(2 * args.clients), "--timeout", "300"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)$", process.stdout.readline().strip())
            if found is None:
                raise DataError(f"{source}: the server did not start")
            yield int(found[1])
        finally:
            process.terminate()


async def counts(port: int) -> tuple[float, float]:
    """Images and batches that the server has computed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    names = ("nv_inference_count_total", "nv_inference_exec_count_total")
    images, batches = (float(re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)[0]) for name in names)
    return images, batches


def run(args: Namespace) -> int:
    """Measure, and print it."""
    sleep_rather_than_spin()  # as every command does, before PyTorch is imported
    files = photos(64, (args.width, args.width * 3 // 4))
    with tempfile.TemporaryDirectory() as folder:
        source = args.source or random_network(args.model, Path(folder, "network"))
        result = measure(source, files, args)
    print(result.text())
    if args.json:
        write_text(args.json, json.dumps({**asdict(result), "ratio": result.ratio}, indent=1) + "\n")
    return 0


def measure(source: str, files: Sequence[bytes], args: Namespace) -> Serving:
    """Rounds of the server and of one process."""
    offline, times, lives = Offline(source, args.batch), list[float](), list[float]()
    speeds: list[tuple[float, float]] = []
    count = -(-args.requests // args.rounds)
    offline.measure(files, 2 * args.batch)  # warms up
    with server(source, args) as port:
        asyncio.run(load(port, files, args.clients, 2 * args.batch))
        before = asyncio.run(counts(port))
        for _ in range(args.rounds):
            seconds, own, answers = asyncio.run(load(port, files, args.clients, count))
            times, lives = times + own, lives + answers
            speeds.append((offline.measure(files, count), len(own) / seconds))
        after = asyncio.run(counts(port))
    cuts, (slow, fast) = quantiles(times, n=100), zip(*speeds, strict=True)
    return Serving(
        args.source or args.model, args.clients, count * args.rounds, len(times), slow, fast,
        1000 * cuts[49], 1000 * cuts[98], 1000 * quantiles(lives, n=100)[98],
        (after[0] - before[0]) / (after[1] - before[1]),
    )  # fmt: skip


def random_network(name: str, folder: Path) -> str:
    """A network with random weights, in a folder."""
    from metaformer.factory import create_model
    from metaformer.weights.hub import save_pretrained

    save_pretrained(create_model(name, num_classes=1000), folder)
    return str(folder)


def add_options(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--model", default="poolformer_s12", help="network with random weights (default poolformer_s12)")
    add("--source", metavar="RUN|FILE", help="instead, what metaformer serve takes")
    add("--clients", type=int, default=64, metavar="N", help="requests at once (default 64)")
    add("--requests", type=int, default=1000, metavar="N", help="requests (default 1000)")
    add("--rounds", type=int, default=5, metavar="N", help="rounds of them (default 5)")
    add("--batch", type=int, default=8, metavar="N", help="images of a batch (default 8)")
    add("--width", type=int, default=500, metavar="N", help="of the images, in pixels (default 500)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")


if __name__ == "__main__":
    sys.exit(run_program("benchmarks.serving", DESCRIPTION, EXAMPLE, add_options, run))
