"""Requests that are too large, too slow, too many or lead elsewhere."""

import http.client
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from PIL import Image

from metaformer.deploy.server import protocol
from metaformer.deploy.server.protocol import FRAMING, READ_SIZE
from serving import LIMIT, Running, count_reads, encoded, post, read_all, running


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what the server reads from its sockets."""
    return count_reads(monkeypatch)


def send(server: Running, parts: Iterator[bytes] | list[bytes]) -> bytes:
    """Send parts until the server has enough; returns its answer."""
    with server.client.connect() as connection:
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
        return read_all(connection)


def status(answer: bytes) -> int:
    """Status of an answer with an error as JSON."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert set(json.loads(body)) == {"error"}, answer
    return int(head.split()[1])


BLOCK = bytes(1 << 14)
OVERSIZE = {
    "a large body": [post(f"content-length: {LIMIT + 1}"), *[BLOCK] * 100],
    "a length without a body": [post("content-length: 99999999999")],
    "chunks": [post("transfer-encoding: chunked"), *[b"4000\r\n" + BLOCK + b"\r\n"] * 100],
    "tiny chunks": [post("transfer-encoding: chunked"), *[b"1\r\nx\r\n" * 1000] * 1000],
    "chunks with long extensions": [
        post("transfer-encoding: chunked"),
        *[b"1;" + b"x" * 4000 + b"\r\nx\r\n"] * 300,
    ],
}


@pytest.mark.parametrize("name", OVERSIZE)
def test_too_large_a_body_is_not_read(name: str, server: Running, reads: list[int]) -> None:
    assert status(send(server, OVERSIZE[name])) == 413
    assert sum(reads) <= LIMIT + FRAMING + READ_SIZE


def test_a_body_of_no_request_is_not_read(server: Running, reads: list[int]) -> None:
    parts = [b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 250000\r\n\r\n", *[BLOCK] * 100]
    assert status(send(server, parts)) == 404
    assert sum(reads) <= FRAMING + READ_SIZE


def test_a_body_of_the_limit_is_read(server: Running) -> None:
    answer = server.client.image("/predict", bytes(LIMIT))
    assert answer.status == 400 and "image" in answer.json()["error"]


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1001, 1000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int], server: Running) -> None:
    answer = server.client.image("/predict", png(*size))
    assert answer.status == 413 and "pixels" in answer.json()["error"]


def test_a_compressed_body_is_refused(server: Running) -> None:
    answer = server.client.image("/predict", zlib.compress(bytes(100)), content_encoding="gzip")
    assert answer.status == 415


def test_slow_requests_are_cut_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BASE_TIMEOUT", 0.6)
    begun = time.monotonic()
    starts = [b"", b"POST /predict HTTP/1.1\r\nhost: x\r\n", post("content-length: 1000")]
    with ExitStack() as stack:
        connections = [stack.enter_context(server.client.connect()) for _ in starts * 3]
        ended: dict[socket.socket, float] = {}
        for connection, start in zip(connections, starts * 3, strict=True):
            connection.sendall(start)
            connection.setblocking(False)
        answers = dict.fromkeys(connections, b"")
        while len(ended) < len(connections):
            assert time.monotonic() - begun < 10
            for number, connection in enumerate(connections):
                if connection not in ended and drip(connection, answers, number % 3 > 0):
                    ended[connection] = time.monotonic() - begun
            time.sleep(0.05)
    assert all(0.5 < seconds < 3 for seconds in ended.values()), ended.values()
    assert {status(answer) for answer in answers.values()} == {408}


def drip(connection: socket.socket, answers: dict[socket.socket, bytes], sends: bool) -> bool:
    """Send a byte; returns whether the server has closed the connection."""
    try:
        if sends:
            connection.send(b"x")
        part = connection.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True
    answers[connection] += part
    return not part


def test_steady_uploads_have_time(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BASE_TIMEOUT", 0.5)
    image = encoded(Image.effect_noise((400, 400), 90).convert("RGB"))[:LIMIT]
    with server.client.connect() as connection:
        connection.sendall(post("connection: close", f"content-length: {len(image)}"))
        for first in range(0, len(image), 25_000):
            connection.sendall(image[first : first + 25_000])
            time.sleep(0.12)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200") or status(answer) == 400


def test_a_client_that_does_not_fetch_its_answers_is_cut_off(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BASE_TIMEOUT", 0.3)
    with server.client.connect() as connection:
        connection.settimeout(20)
        begun = time.monotonic()
        with pytest.raises(OSError):  # answers to it fill all buffers, and then the server reads no more
            connection.sendall(b"GET /static/app.js HTTP/1.1\r\nhost: x\r\n\r\n" * 100_000)
        assert time.monotonic() - begun < 15


def test_answers_on_a_busy_connection_are_whole(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for one answer has no say in those that come later."""
    monkeypatch.setattr(protocol, "BASE_TIMEOUT", 0.15)
    connection = http.client.HTTPConnection(server.client.host, server.client.port, timeout=30)
    begun, answers = time.monotonic(), 0
    while time.monotonic() - begun < 2:
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live": true}', answers
        assert connection.sock is not None, "kept"
        answers += 1
    connection.close()
    assert answers > 30


@pytest.mark.slow
def test_a_client_may_pause_between_requests(server: Running) -> None:
    """One that is starved, or a proxy, keeps its connections for as long as a minute."""
    with server.client.connect() as connection:
        for pause in (0, 12, 55):
            time.sleep(pause)
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200"), pause


def test_connections_between_requests_make_room(untrained: dict[str, Path]) -> None:
    """The one that has waited longest is closed for a new one."""
    with running({"digits": untrained["classify"]}, max_connections=3) as server, ExitStack() as stack:
        kept = [stack.enter_context(server.client.connect()) for _ in range(3)]
        for connection in kept:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.client("/v2/health/live").status == 200
        assert kept[0].recv(4096) == b"", "closed"
        kept[1].sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert kept[1].recv(4096).startswith(b"HTTP/1.1 200"), "open"


def test_more_connections_than_allowed_are_refused(untrained: dict[str, Path]) -> None:
    with running({"digits": untrained["classify"]}, max_connections=3) as server:
        idle = [server.client.connect() for _ in range(3)]
        server.until(lambda: b"503" in server.client.raw(b""))
        answer = server.client("/v2/health/live")
        assert answer.status == 503 and answer.headers["retry-after"]
        for connection in idle:
            connection.close()
        server.until(lambda: server.client("/v2/health/live").status == 200)


def test_a_full_queue_answers_at_once(untrained: dict[str, Path], photos: list[Image.Image]) -> None:
    """While the network computes one image, two wait, and the others are told to come again."""
    network = {"digits": untrained["classify"]}
    with running(network, queue=2, max_batch=1) as server, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.client.image("/predict", photos[0]), range(64)))
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {200, 503}
    assert all(
        answer.headers["retry-after"] == "1" and "busy" in answer.json()["error"] for answer in refused
    )


def test_a_client_that_hangs_up_leaves_the_queue(
    untrained: dict[str, Path], photos: list[Image.Image]
) -> None:
    """A batch that is not full waits a minute for its second image."""
    with running({"digits": untrained["classify"]}, max_delay_ms=10_000, max_batch=2) as server:
        image, batcher = encoded(photos[0]), server.model("digits")._batcher
        with server.client.connect() as connection:
            connection.sendall(post(f"content-length: {len(image)}", body=image))
            server.until(lambda: len(batcher) == 1)
        server.until(lambda: len(batcher) == 0)
        with ThreadPoolExecutor(2) as pool:  # whose batch is full without the first
            answers = list(pool.map(lambda _: server.client.image("/predict", photos[0]), range(2)))
    assert [answer.status for answer in answers] == [200, 200]


def test_a_request_that_takes_too_long(untrained: dict[str, Path], photos: list[Image.Image]) -> None:
    with running({"digits": untrained["classify"]}, max_delay_ms=10_000, timeout=0.3) as server:
        answer = server.client.image("/predict", photos[0])
        assert answer.status == 504 and "0.3 seconds" in answer.json()["error"]
        assert len(server.model("digits")._batcher) == 0


def test_responses_are_those_of_the_requests(server: Running, photos: list[Image.Image]) -> None:
    """Many clients at once: each has the prediction of its own image."""
    alone = [server.client.image("/predict/classify", image).json()["prediction"] for image in photos]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: server.client.image("/predict/classify", photos[i % 4]), range(96)))
    for number, answer in enumerate(answers):
        assert answer.status in (200, 503)
        if answer.status == 200:
            best, expected = answer.json()["prediction"]["classes"][0], alone[number % 4]["classes"][0]
            assert best["name"] == expected["name"]
            assert best["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert sum(answer.status == 200 for answer in answers) > 48


TRIES = [
    "/static/../network.py",
    "/static/..%2fnetwork.py",
    "/static/%2e%2e/network.py",
    "/static/%2e%2e%2f%2e%2e%2fserver/network.py",
    "/static/....//network.py",
    "/static/..\\network.py",
    "/static/..%5cnetwork.py",
    "/static//etc/passwd",
    "/static/{canary}",
    "/static/%00index.html",
    "/static/index.html%00.png",
    "/static/.",
    "/static/",
    "/../canary.txt",
    "/predict/..%2f..%2fcanary.txt",
    "/predict/{canary}",
    "/explain/{canary}",
    "/v2/models/..%2f{canary}/infer",
    "/v2/repository/models/classify/load",
    "/v2/repository/index",
]


def test_no_address_leads_to_a_file(server: Running, tmp_path: Path) -> None:
    canary = tmp_path / "canary.txt"
    canary.write_text("tweet")
    for address in TRIES:
        for method in ("GET", "POST"):
            target = address.replace("{canary}", str(canary)).encode()
            raw = method.encode() + b" " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            answer = server.client.raw(raw)
            assert status(answer) in (400, 404, 405), answer
            assert b"tweet" not in answer and b"root:" not in answer and str(tmp_path).encode() not in answer


def test_no_input_is_an_address(server: Running, tmp_path: Path) -> None:
    """URLs and paths as images are no images; nobody comes for them."""
    (tmp_path / "canary.txt").write_text("tweet")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/image.png"
        bodies = [url, f"file://{tmp_path}/canary.txt", str(tmp_path / "canary.txt"), f'{{"url": "{url}"}}']
        for body in bodies:
            for kind in ("image/png", "application/json", "text/plain", "application/x-www-form-urlencoded"):
                answer = server.client(f"/predict?url={url}", body, content_type=kind)
                assert answer.status in (400, 415) and "tweet" not in answer.body.decode()
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
