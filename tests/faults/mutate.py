"""Mutations of files by what they hold: JSON, words, bytes, zip and tar archives, safetensors."""

import copy
import io
import json
import os
import random
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Mutate = Callable[[random.Random, bytes], bytes]

DEEP: Final = "@deep@"
"""Stands for nested lists in a document that `json` could not write."""
VALUES: Final = (
    *(None, True, False, [], {}, "", " ", [None], {"a": None}, [[1, 2]], "x", "x" * 5000, "0", "1e9", "None"),
    *(0, -1, 1, 2, 3.5, -0.0, 1e9, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 1e-320),
    *(7, 255, 256, 65536, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**6, 10**9, 10**12, 10**18),
    *(10**400, -(10**400), [1, 2], [1, 2, 3], [0] * 1000, [10**9] * 4, [float("nan")] * 3, [10**400] * 3),
    *("a\nb", "a\rb", "\x00", "\x1b[31m", "\u2028", "\ud800", "é", "日本", "../../etc/passwd", "/dev/zero"),
    *("pooling(size=999999999)", "attention(head_dim=1000000000000)", "(" * 300, "pooling(size=" * 50, DEEP),
    *({"bytes": 1}, {"__proto__": 1}, ["a", 1, None], "os.system", "%s%n", "{0}", "a" * 300),
)
"""What stands in place of a value."""
WORDS: Final = (
    *("", "-1", "0", "1", "nan", "inf", "-inf", "1e400", "1e9", "9" * 400, "9" * 5000, "1_000", "٣", "0x10"),
    *(
        "null",
        "true",
        "[]",
        "{}",
        "a" * 300,
        "a" * 70_000,
        "é",
        "\ufeff",
        "\u2028",
        "\x00",
        "\x1b[31m",
        "\x85",
    ),
    *(
        "../../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "~",
        "~nobody_at_all/x",
        "*",
        "**",
        "|cat",
        "-",
        "--",
    ),
    *(
        '"',
        "'",
        ",",
        ";",
        "\t",
        "\r",
        "\n\n",
        ":",
        "&x",
        "*x",
        "<<: *x",
        "!!python/name:os",
        "!!binary aGk=",
        "%",
    ),
    *("[" * 300, "{" * 300, "- " * 100, "<a>" * 30, "&amp;", "<!DOCTYPE a>", "2020-01-01", ".nan", ".inf"),
)
"""What stands in place of a word."""
PARTS: Final = (
    *("", "-1", "9", "99", "9" * 12, "9" * 5000, "٣", "1x", "a\nb", "head", "neck", "laterals", "blocks"),
    *("stages", "module", "network", "token_mixer", "norm", "fc", "downsample", "weight", "0.0.0"),
)
"""What stands in place of a part of a tensor's name."""
NUMBERS: Final = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)


def json_bytes(draw: random.Random, data: bytes) -> bytes:
    """JSON with some values, keys or items replaced, left out or doubled."""
    if draw.random() < 0.1:
        return words(draw, data) if draw.random() < 0.5 else any_bytes(draw, data)
    return dump(values(draw, json.loads(data)))


def values(draw: random.Random, document: Any) -> Any:
    """Plain values with one to three changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return copy.deepcopy(draw.choice(VALUES))
        owner, key = draw.choice(places)
        match draw.randrange(8):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[draw.choice(("", "a", "\ud800", "a\nb", "x" * 300, str(key) + "s"))] = owner[key]
            case 1:
                owner.insert(key, owner[key])
            case 2 if isinstance(owner[key], list):
                owner[key] = owner[key] * draw.choice((2, 3, 100))
            case 3:
                owner[key] = draw.choice(([owner[key]], {"a": owner[key]}, str(owner[key])))
            case _:
                owner[key] = copy.deepcopy(draw.choice(VALUES))
    return document


def _places(document: Any) -> Any:
    """Each place of a document: its container and its key."""
    keys = list(document) if isinstance(document, dict) else range(len(document))
    for key in keys:
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


def dump(document: Any) -> bytes:
    """JSON, with nested lists where `DEEP` stands."""
    return json.dumps(document).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000).encode()


def words(draw: random.Random, data: bytes) -> bytes:
    """Text with some words replaced, left out, doubled, or in another encoding."""
    text = data.decode(errors="replace")
    for _ in range(draw.choice((1, 1, 2, 4))):
        separators = draw.choice((" \n", ",\n", "\n", ":\n", "<>", '"', "\t\n ", "=."))
        marks = [-1, *(i for i, letter in enumerate(text) if letter in separators), len(text)]
        place = draw.randrange(len(marks) - 1)
        start, end = marks[place] + 1, marks[place + 1]
        word = draw.choice(
            (draw.choice(WORDS), text[start:end] * 2, text[start:end] + "\n" + text[start:end])
        )
        text = text[:start] + word + text[end:]
    if draw.random() < 0.1:
        return text.encode(draw.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7")), errors="replace")
    encoded = text.encode(errors="replace")
    return any_bytes(draw, encoded) if draw.random() < 0.1 else encoded


def any_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut off, left out, put in or overwritten by a number."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(7):
            case 0:
                del changed[place:]
            case 1:
                del changed[place : place + draw.choice((1, 8, 100))]
            case 2:
                changed[place:place] = draw.randbytes(draw.choice((1, 4, 512)))
            case 3:
                changed[place : place + 8] = struct.pack(draw.choice("<>") + "Q", draw.choice(NUMBERS))
            case 4:
                changed[place : place + 4] = struct.pack(
                    draw.choice("<>") + "I", draw.choice(NUMBERS) & 0xFFFFFFFF
                )
            case 5:
                changed[place:place] = bytes(draw.choice((1, 512, 70_000)))
            case _ if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def safetensors(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header, or another length of it."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    match draw.randrange(4):
        case 0:
            return any_bytes(draw, data)
        case 1:
            return struct.pack("<Q", draw.choice((*NUMBERS, length + 1, length - 1))) + header + body
    if draw.random() < 0.6:
        header = json.dumps(_tensors(draw, json.loads(header))).encode()
    else:
        header = json_bytes(draw, header)
    return struct.pack("<Q", len(header)) + header + body


def _tensors(draw: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """Tensors by other names, and of other shapes with as many numbers."""
    names = [name for name in header if name != "__metadata__"]
    for _ in range(draw.choice((1, 1, 2, 5))):
        name = draw.choice(names)
        if name in header and draw.random() < 0.5:
            parts = name.split(".")
            place = draw.randrange(len(parts))
            parts[place] = draw.choice(PARTS)
            header[".".join(parts)] = header.pop(name)
        elif name in header:
            shape = header[name]["shape"]
            count = 1
            for side in shape:
                count *= side
            header[name]["shape"] = draw.choice(
                ([count], [1, count], [count, 1, 1, 1], [1] * 9 + [count], shape[::-1], [*shape, 1])
            )
            if draw.random() < 0.2:
                header[name]["dtype"] = draw.choice(("I32", "F64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X"))
            if draw.random() < 0.1:
                start = header[name]["data_offsets"][0]
                header[name] |= {"shape": [], "data_offsets": [start, start + 4]}
    return header


def archive(draw: random.Random, data: bytes) -> bytes:
    """A zip archive with odd members: other names, contents, methods, sizes, encrypted ones."""
    if draw.random() < 0.3:
        return any_bytes(draw, data)
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(written, "w") as target:
        members = [(entry.filename, source.read(entry)) for entry in source.infolist()]
        chosen = draw.randrange(len(members))
        for number, (name, content) in enumerate(members):
            kind = zipfile.ZIP_STORED
            if number == chosen:
                name = draw.choice(
                    (name, name, name, "x/", "../x", "/etc/x", "x" * 60_000, "a\nb", name.upper())
                )
                kind = draw.choice(
                    (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
                )
                content = _member(draw, content)
            for _ in range(draw.choice((1, 1, 1, 0, 2))):
                target.writestr(name, content, kind)
    changed = bytearray(written.getvalue())
    # flags, method, sizes and offsets in the headers of members and in the directory
    fields = {b"PK\x03\x04": (6, 8, 14, 18, 22, 26), b"PK\x01\x02": (8, 10, 16, 20, 24, 28, 42)}
    for magic, offsets in fields.items():
        at = changed.find(magic)
        while at >= 0 and at + 46 < len(changed):
            if draw.random() < 0.15:
                field = at + draw.choice(offsets)
                changed[field : field + 2] = struct.pack("<H", draw.choice((0, 1, 8, 9, 14, 99, 0xFFFF)))
            at = changed.find(magic, at + 4)
    return bytes(changed)


def _member(draw: random.Random, content: bytes) -> bytes:
    """A member's content; JSON within JSON, as packages have it, stays JSON."""
    try:
        outer = json.loads(content)
        name, inner = next((name, json.loads(text)) for name, text in outer.items() if isinstance(text, str))
    except (ValueError, AttributeError, TypeError, StopIteration):
        return any_bytes(draw, content)
    if draw.random() < 0.3:
        return json_bytes(draw, content)
    return json.dumps({**outer, name: dump(values(draw, inner)).decode()}).encode()


def tar(draw: random.Random, data: bytes) -> bytes:
    """A tar file with changed headers, whose checksums are right: types, sizes, names."""
    if draw.random() < 0.2:
        return any_bytes(draw, data)
    changed, heads = bytearray(data), []
    with tarfile.open(fileobj=io.BytesIO(data)) as source:
        heads = [entry.offset for entry in source]
        classes = [entry.offset_data for entry in source if entry.name.endswith(".cls")]
    if classes and draw.random() < 0.2:
        text = draw.choice(("-1", "1e3", "9" * 12, "9" * 500, "x", "", "1_0", "٣", "\x00", "65535")).encode()[
            :512
        ]
        at = draw.choice(classes)
        changed[at : at + 512] = text.ljust(512, b"\0")
        head = at - 512
        changed[head + 124 : head + 136] = b"%011o\0" % len(text)
        _sum(changed, head)
        return bytes(changed)
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.choice(heads)
        match draw.randrange(5):
            case 0:
                changed[at + 156] = draw.choice(b"0SLKxgDVMNX1234567\0\xff")
            case 1:
                changed[at + 124 : at + 136] = _base256(draw)
            case 2:
                size = draw.choice((0, 1, 511, 512, 2**20, 2**31, 2**33 - 1))
                changed[at + 124 : at + 136] = b"%011o\0" % size
            case 3:
                changed[at : at + 100] = draw.choice(
                    (
                        b"",
                        b"a",
                        b"\xff\xfe.jpg",
                        b"../../x.jpg",
                        b"/x.cls",
                        b"a\nb.jpg",
                        b"x.json",
                        b"." * 100,
                    )
                ).ljust(100, b"\0")[:100]
            case _:
                place = at + draw.randrange(512)
                changed[place] = draw.randrange(256)
        _sum(changed, at)
    if draw.random() < 0.2:
        records = draw.choice(
            (
                *(b"size=-1", b"size=1e9", b"size=99999999999999999999", b"path=\xff\xfe", b"hdrcharset=x"),
                *(b"GNU.sparse.major=1", b"GNU.sparse.map=0,99999999999", b"GNU.sparse.realsize=99999999999"),
            )
        )
        record = b"%d %s\n" % (len(records) + 4, records)
        extra = tarfile.TarInfo("pax")
        extra.size, extra.type = len(record), b"x"
        place = draw.choice(heads)
        changed[place:place] = extra.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    return bytes(changed)


def _base256(draw: random.Random) -> bytes:
    number = draw.choice((0, 1, 2**33, 2**62, 2**80, -1, -512, -(2**62)))
    first = b"\xff" if number < 0 else b"\x80"
    return first + (number % 2**88).to_bytes(11, "big")


def _sum(data: bytearray, at: int) -> None:
    """Correct the checksum of a tar header."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def special(draw: random.Random, file: Path) -> str:
    """Put something else than an ordinary file in its place; returns what it is."""
    file.unlink(missing_ok=True)
    kinds: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "full": lambda: file.symlink_to("/dev/full"),
        "folder": file.mkdir,
        "circle": lambda: file.symlink_to(file.name),
        "dangling": lambda: file.symlink_to("nowhere"),
        "socket": lambda: _socket(file),
        "empty": lambda: file.write_bytes(b""),
        "sparse": lambda: _sparse(file),
    }
    kind = draw.choice(list(kinds))
    kinds[kind]()
    return kind


def _socket(file: Path) -> None:
    here = os.getcwd()
    os.chdir(file.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


def _sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
