"""Requests that no client should send, as bytes: a fixed list, and any number of generated ones."""

import json
import re
from collections.abc import Callable
from random import Random
from urllib.parse import quote

from PIL import Image

from serving import encoded

IMAGE = encoded(Image.radial_gradient("L").resize((48, 40)).convert("RGB"), "JPEG")
BOUNDARY = "b0undary"
TENSOR = {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [7] * 3072}
ERROR = re.compile(r"/(?:tmp|root|usr|home|var|work)\b|Traceback|\.py\b|\bline \d|site-packages")
"""What no error may show: paths, tracebacks."""


def request(
    target: str, body: bytes = b"", kind: str = "image/jpeg", method: str = "POST", *headers: str
) -> bytes:
    """A request of the right form."""
    lines = [
        f"{method} {target} HTTP/1.1",
        "host: x",
        "connection: close",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def raw(text: str) -> bytes:
    """A request line and headers as they are."""
    return text.replace("\n", "\r\n").encode("latin-1")


def form(content: str, boundary: str = BOUNDARY) -> bytes:
    """A request with a form, in which @ stands for the boundary and % for an image."""
    body = content.replace("\n", "\r\n").replace("@", f"--{BOUNDARY}").encode()
    return request(
        "/predict", body.replace(b"%", IMAGE), f"multipart/form-data{boundary and '; boundary='}{boundary}"
    )


PART = 'Content-Disposition: form-data; name="image"'
FIXED: dict[str, bytes] = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "no host": raw("GET /models HTTP/1.1\n\n"),
    "two hosts": raw("GET /models HTTP/1.1\nhost: a\nhost: b\n\n"),
    "another version": raw("GET /models HTTP/3.0\nhost: x\n\n"),
    "a header without colon": raw("GET /models HTTP/1.1\nhost: x\nnothing\n\n"),
    "a space in a name": raw("GET /models HTTP/1.1\nhost: x\nna me: 1\n\n"),
    "a NUL in a value": raw("GET /models HTTP/1.1\nhost: x\nname: \x00\n\n"),
    "a space in the target": raw("GET /mod els HTTP/1.1\nhost: x\n\n"),
    "a long header": raw(f"GET /models HTTP/1.1\nhost: x\nname: {'x' * 70_000}\n\n"),
    "many headers": raw("GET /models HTTP/1.1\nhost: x\n" + "a: b\n" * 9000 + "\n"),
    "a long target": raw(f"GET /{'x' * 70_000} HTTP/1.1\nhost: x\n\n"),
    "a length that is none": raw("POST /predict HTTP/1.1\nhost: x\ncontent-length: ten\n\n"),
    "a length below 0": raw("POST /predict HTTP/1.1\nhost: x\ncontent-length: -1\n\n"),
    "two lengths": raw("POST /predict HTTP/1.1\nhost: x\ncontent-length: 1\ncontent-length: 2\n\n"),
    "a huge length": raw(f"POST /predict HTTP/1.1\nhost: x\ncontent-length: {'9' * 30}\n\n"),
    "another coding": raw("POST /predict HTTP/1.1\nhost: x\ntransfer-encoding: gzip\n\n"),
    "a chunk of no size": raw("POST /predict HTTP/1.1\nhost: x\ntransfer-encoding: chunked\n\nz\nx\n"),
    "a chunk below 0": raw("POST /predict HTTP/1.1\nhost: x\ntransfer-encoding: chunked\n\n-1\nx\n"),
    "a chunk without end": raw("POST /predict HTTP/1.1\nhost: x\ntransfer-encoding: chunked\n\n1\nxyz\n"),
    "no body": request("/predict"),
    "no type": request("/predict", IMAGE, ""),
    "a type of text": request("/predict", IMAGE, "text/plain"),
    "a type that is none": request("/predict", IMAGE, ";;=;\xff"),
    "text": request("/predict", b"hello"),
    "HTML": request("/predict", b"<html><img src=x></html>"),
    "SVG": request("/predict", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"),
    "a header of an image alone": request("/predict", IMAGE[:20]),
    "PostScript": request("/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    "TIFF": request("/predict", encoded(Image.new("RGB", (8, 8)), "TIFF"), "image/tiff"),
    "compressed": request("/predict", IMAGE, "image/jpeg", "POST", "content-encoding: gzip"),
    "another method": request("/predict", IMAGE, method="PUT"),
    "GET of what is posted to": request("/predict", method="GET"),
    "a method that is none": request("/models", method="BREW"),
    "no such address": request("/nothing", method="GET"),
    "no such model": request("/predict/nothing", IMAGE),
    "an empty model": request("/predict/", IMAGE),
    "a form without boundary": form(f"@\n{PART}\n\n%\n@--\n", ""),
    "a form with another boundary": form(f"@\n{PART}\n\n%\n@--\n", "other"),
    "a form with a long boundary": form(f"@\n{PART}\n\n%\n@--\n", "x" * 5000),
    "a form that is cut off": form(f"@\n{PART}\n\n%"),
    "an empty form": form("@--\n"),
    "a form of nothing": form(""),
    "a form without image": form("@\nContent-Disposition: form-data; name=other\n\n%\n@--\n"),
    "a form with two images": form(f"@\n{PART}\n\n%\n@\n{PART}\n\n%\n@--\n"),
    "a form without disposition": form("@\nContent-Type: image/png\n\n%\n@--\n"),
    "a form with a long header": form(f"@\n{PART}; x={'y' * 9000}\n\n%\n@--\n"),
    "a form of many parts": form(f"@\n{PART}\n\nx\n" * 500 + "@--\n"),
    "a form with text as image": form(f"@\n{PART}\n\nhello\n@--\n"),
    "an explanation of no class": request("/explain/classify", IMAGE),
    "an explanation of class x": request("/explain/classify?index=x", IMAGE),
    "an explanation of class 10": request("/explain/classify?index=10", IMAGE),
    "an explanation of class -1": request("/explain/classify?index=-1", IMAGE),
    "an explanation of half a box": request("/explain/classify?index=1&box=1,2", IMAGE),
    "an explanation of an empty box": request("/explain/classify?index=1&box=5,5,5,5", IMAGE),
    "an explanation of no box": request("/explain/classify?index=1&box=a,b,c,d", IMAGE),
    "tensors without body": request("/v2/models/classify/infer"),
    "tensors in no JSON": request("/v2/models/classify/infer", b"{'inputs': []}"),
    "deep tensors": request("/v2/models/classify/infer", b'{"inputs":' + b"[" * 50_000),
    "NaN": request("/v2/models/classify/infer", b'{"inputs": [{"name": NaN, "shape": [Infinity]}]}'),
    "no such model for tensors": request("/v2/models/nothing/infer", b"{}"),
    "a parent of a model": request("/v2/models/..%2f..%2fclassify", method="GET"),
}


def _noise(random: Random, most: int = 400) -> bytes:
    return bytes(random.randrange(256) for _ in range(random.randrange(most)))


def _body(random: Random) -> bytes:
    return request(random.choice(["/predict", "/predict/segment"]), b"\x00" + _noise(random))


def _cut_image(random: Random) -> bytes:
    return request("/predict/detect", IMAGE[: random.randrange(len(IMAGE) // 2)])


def _form(random: Random) -> bytes:
    whole = form(f"@\n{PART}; filename={quote(_noise(random, 20))}\n\n%\n@--\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    kept = body[: random.randrange(len(body) - len(BOUNDARY) - 8)]
    return head.replace(str(len(body)).encode(), str(len(kept)).encode()) + b"\r\n\r\n" + kept


def _kind(random: Random) -> bytes:
    letters = "".join(random.choice("abcxyz/;=-+.\"' ") for _ in range(random.randrange(30)))
    return request("/predict", IMAGE, f"text/{letters}")


def _target(random: Random) -> bytes:
    start = random.choice(["/", "/static/", "/predict/", "/v2/", "/v2/models/", "/explain/"])
    method = random.choice(["GET", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    return request(start + quote(_noise(random, 40)) + "!", IMAGE, method=method)


def _header(random: Random) -> bytes:
    name = "".join(chr(random.choice([0, 9, 11, 13, 32, 58, 64, 127, 200])) for _ in range(3)) + "x"
    return raw(f"GET /models HTTP/1.1\nhost: x\nconnection: close\n a{name}\x00b\n\n")


def _tensors(random: Random) -> bytes:
    odd = [None, -1, 2**70, 1.5, "x", [], {}, [[]], True, [1, "x"], "\x00", [[1], [2, 3]], ["a"] * 5]
    fields: dict[str, object] = {"inputs": [dict(TENSOR)]}
    name = random.choice(["name", "shape", "datatype", "data"])
    fields["inputs"] = random.choice(
        [[{**TENSOR, name: random.choice(odd)}], [TENSOR, TENSOR | {"name": "x"}], *odd]
    )
    if fields["inputs"] == []:
        fields = {}
    return request("/v2/models/classify/infer", json.dumps(fields).encode(), "application/json")


def _binary(random: Random) -> bytes:
    size = random.choice([-1, 0, 10**12, "x", "0x10", 3073, " "])
    row = {**TENSOR, "parameters": {"binary_data_size": random.choice([-1, 3071, 3073, 2**64, "x"])}}
    body = json.dumps({"inputs": [row]}).encode() + _noise(random)
    header = f"inference-header-content-length: {size}"
    return request("/v2/models/classify/infer", body, "application/octet-stream", "POST", header)


def _question(random: Random) -> bytes:
    query = random.choice(["index", "box", "index=1&box", "i"])
    return request(f"/explain/classify?{query}={quote(_noise(random, 30))}!", IMAGE)


KINDS: list[Callable[[Random], bytes]] = [
    _body, _cut_image, _form, _kind, _target, _header, _tensors, _binary, _question,
]  # fmt: skip


def generated(count: int, seed: int = 0) -> list[bytes]:
    """Requests of every kind in turn."""
    random = Random(seed)
    return [KINDS[number % len(KINDS)](random) for number in range(count)]


def problem(answer: bytes) -> str:
    """What is wrong with the answer to a bad request; empty if nothing is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1:2]
    if not status or not status[0].startswith(b"4"):
        return f"status {status}"
    if b"application/json" not in head.lower() or b"nosniff" not in head:
        return "headers"
    try:
        values = json.loads(body)
    except ValueError:
        return "no JSON"
    if not isinstance(values, dict) or list(values) != ["error"] or not isinstance(values["error"], str):
        return "no error"
    found = ERROR.search(values["error"])
    return f"shows {found[0]}" if found else ""
