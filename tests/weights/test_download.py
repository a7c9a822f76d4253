"""Downloads from a server on this machine that cuts, lies and fails."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from metaformer.errors import DownloadError
from metaformer.weights import download as module
from metaformer.weights.download import download, fetch
from metaformer.weights.sources import Source

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA = hashlib.sha256(CONTENT).hexdigest()
CUT = 700_000


class Server(ThreadingHTTPServer):
    """Serves CONTENT; cuts the first `cuts` answers after CUT bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts = 0
        self.errors = 0
        self.ranges_supported = True
        self.etag = '"one"'
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.errors:
            self.server.errors -= 1
            self.send_error(503)
            return
        if self.path == "/page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>Are you sure?</html>")
            return
        if self.path == "/nothing":
            self.send_error(404)
            return
        same = self.headers.get("If-Range", self.server.etag) == self.server.etag
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and same else 0
        if not self.server.ranges_supported:
            start = 0
        if start > len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        body = CONTENT[start:]
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[:CUT]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_whole_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = download(server.url, tmp_path / "new" / "x.pth", SHA[:8])
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["x.pth"]
    assert "x.pth" in capsys.readouterr().err  # the progress bar


@pytest.mark.parametrize(
    ("behavior", "part", "etag", "requests"),
    [
        ({"cuts": 2}, None, "", [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]),
        ({"cuts": 1, "ranges_supported": False}, None, "", [None, f"bytes={CUT}-"]),
        ({"errors": 2}, None, "", [None] * 3),
        ({}, b"old" * 1000, '"zero"', ["bytes=3000-"]),  # parts of two versions are not joined
        ({}, CONTENT + b"more", "", [f"bytes={len(CONTENT) + 4}-", None]),
    ],
    ids=["cut", "cut by a server without ranges", "busy", "changed", "part too long"],
)
def test_the_whole_file_arrives(
    server: Server, tmp_path: Path, behavior: dict[str, int], part: bytes | None, etag: str, requests: Any
) -> None:
    vars(server).update(behavior)
    if part is not None:
        (tmp_path / "x.pth.part").write_bytes(part)
    if etag:
        (tmp_path / "x.pth.part.etag").write_text(etag)
    assert download(server.url, tmp_path / "x.pth", SHA, progress=False).read_bytes() == CONTENT
    assert server.requests == requests


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.cuts = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ATTEMPTS", 1)
        with pytest.raises(DownloadError, match="cut; 700,000 bytes are kept"):
            download(server.url, tmp_path / "x.pth", SHA, progress=False)
    assert not (tmp_path / "x.pth").exists()
    download(server.url, tmp_path / "x.pth", SHA, progress=False)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={CUT}-"


def test_a_wrong_hash_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"{SHA[:8]}, published is 12345678"):
        download(server.url, tmp_path / "x.pth", "12345678", progress=False)
    assert not (tmp_path / "x.pth").exists() and not (tmp_path / "x.pth.part").exists()


def test_what_cannot_be_fetched_is_named_with_a_remedy(server: Server, tmp_path: Path) -> None:
    nothing, page = (server.url.replace("weights.pth", name) for name in ("nothing", "page"))
    for url, error in (
        (nothing, "404"),
        ("http://127.0.0.1:9/weights.pth", "refused"),
        (page, "a web page and not the file"),
    ):
        with pytest.raises(DownloadError, match=error) as caught:
            download(url, tmp_path / "x.pth", progress=False)
        assert url in str(caught.value) and "checkpoint_path" in str(caught.value)
    assert server.requests == [None, None]
    assert {path.name for path in tmp_path.iterdir()} <= {"x.pth.part.lock"}
    with pytest.raises(DownloadError, match="only http"):
        download(f"file://{tmp_path}/y", tmp_path / "x.pth")


def test_no_room_for_a_cache(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        download(server.url, tmp_path / "file" / "x.pth")


def test_the_cache_is_asked_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path / "home"))
    source = Source(model="m", tag="t", url=server.url, format="poolformer", sha256=SHA[:8])
    first = fetch(source, progress=False)
    assert first == tmp_path / "home" / "weights" / "weights.pth" == fetch(source, progress=False)
    assert len(server.requests) == 1
