"""Addresses: the page, the description, metrics and states; headers of every answer."""

import http.client
import re
import time
from importlib.resources import files
from typing import Any

import pytest
from PIL import Image

from metaformer.deploy.server.openapi import document
from metaformer.deploy.server.static import page_files
from serving import Running


def test_every_address_is_described(server: Running) -> None:
    found = server.client("/openapi.json").json()
    assert found == document(["classify", "multilabel", "segment", "detect"], sorted(page_files()))
    described = {(path, method) for path, methods in found["paths"].items() for method in methods}
    app: Any = server.server.app
    routes = {(route.path.replace(":path", ""), m.lower()) for route in app.routes for m in route.methods}
    assert described == {(path, method) for path, method in routes if method != "head"}


def test_the_page_is_the_files_of_its_folder(server: Running) -> None:
    root, known = files("metaformer.deploy.server") / "page", page_files()
    assert known["index.html"].content == (root / "index.html").read_bytes()
    answer = server.client("/")
    assert answer.body == known["index.html"].content
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for name, file in known.items():
        served = server.client(f"/static/{name}")
        assert (served.body, served.headers["content-type"]) == (file.content, file.type)
    assert server.client("/static/nothing.js").status == 404


@pytest.mark.parametrize("path", ["/", "/models", "/nothing", "/metrics", "/static/x", "/v2/health/live"])
def test_every_answer_has_the_headers(path: str, server: Running) -> None:
    headers = server.client(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers and not any(name.startswith("access-control") for name in headers)


def test_metrics_count_requests_and_batches(server: Running, photos: list[Image.Image]) -> None:
    def count(name: str) -> float:
        text = server.client("/metrics").body.decode()
        return float(re.findall(rf'^{name}{{model="segment",version="1"}} (\S+)$', text, re.MULTILINE)[0])

    names = ("request_success", "request_failure", "count", "exec_count", "request_duration_us")
    before = [count(f"nv_inference_{name}_total") for name in names]
    for _ in range(3):
        server.client.image("/predict/segment", photos[0])
    assert server.client.image("/predict/segment", b"x").status == 400
    after = [count(f"nv_inference_{name}_total") for name in names]
    assert [b - a for a, b in zip(before[:4], after[:4], strict=True)] == [3, 0, 3, 3]
    assert after[4] > before[4]
    assert count("nv_inference_pending_request_count") == 0


def test_states_are_those_of_all_networks(server: Running) -> None:
    assert server.client("/v2/health/live").json() == {"live": True}
    states = dict.fromkeys(("classify", "multilabel", "segment", "detect"), "ready")
    assert server.client("/v2/health/ready").json() == {"ready": True, "models": states}


def test_answers_on_a_kept_connection_come_at_once(server: Running) -> None:
    """Not after the 40 ms by which clients put acknowledgements off, as with Nagle's algorithm."""
    connection = http.client.HTTPConnection(server.client.host, server.client.port, timeout=30)
    seconds = []
    for _ in range(15):
        begun = time.perf_counter()
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - begun)
    connection.close()
    assert sorted(seconds)[len(seconds) // 2] < 0.03
