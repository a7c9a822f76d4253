"""Drawings of strangers as SVG: inspected, then rendered by a process whose time and memory are limited.

Only drawings that refer to nothing outside themselves are rendered.
"""

import io
import json
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Annotated, Any, Final, Self
from xml.parsers import expat

from PIL import Image

from metaformer.errors import DataError, MissingPackage
from metaformer.serialize import Range

SECONDS: Final = 10
"""Processor time of a drawing, at most; icons take milliseconds."""
MEMORY: Final = 2 << 30
"""Bytes of address space of the process that renders."""
_LARGEST_BODY: Final = 100_000
"""Letters of a drawing."""
_LARGEST_IMAGE: Final = 64 << 20
"""Bytes of a rendered one."""
_SVG: Final = "http://www.w3.org/2000/svg"
_ELEMENTS: Final = {
    *("svg", "g", "defs", "title", "desc"),
    *("path", "rect", "circle", "ellipse", "line", "polyline", "polygon"),
    *("linearGradient", "radialGradient", "stop", "mask", "clipPath", "animate", "animateTransform", "set"),
}
"""What drawings may hold: no other documents, programs or fonts, nothing that makes few bytes much work."""
_FOREIGN: Final = re.compile(r"url\(\s*[\"']?(?!#|[\s\"'])", re.I)
_LAYER: Final = re.compile("mask|clip-path")
_DEEPEST: Final = 80
"""Levels of nesting, times masks and clips: resvg goes down into them, and ends the process at 250."""
Side = Annotated[float, Range(0, 10_000, above=True)]


@dataclass(frozen=True)
class Drawing:
    """An icon as SVG."""

    body: str
    width: Side
    height: Side
    left: float = 0.0
    top: float = 0.0

    def svg(self, color: str = "#000") -> str:
        """The document; what has no color of its own is drawn in `color`."""
        box = f"{self.left:g} {self.top:g} {self.width:g} {self.height:g}"
        body = self.body.replace("currentColor", color)
        return (
            f'<svg xmlns="{_SVG}" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{self.width:g}" height="{self.height:g}" color="{color}">{body}</svg>'
        )


class _Unsafe(Exception):
    """A drawing that is not rendered."""


class _Inspector:
    """Reads a drawing as the renderer will, element by element; raises `_Unsafe` at what is not wanted."""

    def __init__(self) -> None:
        self.depth = self.deepest = self.layers = 0
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self.parser.ProcessingInstructionHandler = self._refuse

    def inspect(self, svg: str) -> None:
        """Read a document."""
        try:
            self.parser.Parse(svg.encode(), True)
        except expat.ExpatError as error:
            raise _Unsafe from error
        if self.deepest * (self.layers + 1) > _DEEPEST:
            raise _Unsafe

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        namespace, _, local = name.rpartition(" ")
        if namespace != _SVG or local not in _ELEMENTS:
            raise _Unsafe
        for key, value in attributes.items():
            refers = key.rpartition(" ")[2] == "href"
            if (refers and not value.startswith("#")) or _FOREIGN.search(value):
                raise _Unsafe
            self.layers += bool(_LAYER.search(key if key != "style" else value))

    def _end(self, name: str) -> None:
        self.depth -= 1

    def _refuse(self, *_: object) -> None:
        raise _Unsafe


def is_safe(drawing: Drawing) -> bool:
    """Whether a drawing is of a sane size, and refers to nothing outside itself."""
    if len(drawing.body) > _LARGEST_BODY:
        return False
    try:
        _Inspector().inspect(drawing.svg())
    except _Unsafe:
        return False
    return True


def load_resvg() -> Any:
    """Import resvg_py.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise MissingPackage("resvg-py", "icons", "rendering icons") from error
    return resvg_py


class Renderer:
    """A process that renders drawings until the context is left.

    A few bytes can be much work, such as tiny dashes along many lines. The system itself ends the process
    where a drawing exceeds the limits: processor time, so that a busy machine changes nothing, and memory.

    Args:
        seconds: processor time of a drawing, at most.
        memory: bytes of address space.

    Raises:
        MissingPackage: resvg-py is not installed.
    """

    def __init__(self, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        load_resvg()
        self.seconds = seconds
        self._pipe, theirs = Pipe()
        with theirs:
            arguments = map(str, (theirs.fileno(), seconds, memory))
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments],
                stderr=subprocess.DEVNULL,  # what Rust says at its end; `render` says which drawing it was
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def render(self, drawing: Drawing, side: int, name: str) -> Image.Image | None:
        """A drawing in RGBA in the middle of a square of `side` pixels; None where it is not rendered.

        Args:
            drawing: the drawing.
            side: height and width of the image.
            name: what an error calls it, such as `mdi:home`.

        Raises:
            DataError: it exceeds the limits.
        """
        if not is_safe(drawing):
            return None
        scale = side / max(drawing.width, drawing.height)
        width, height = (max(1, round(scale * length)) for length in (drawing.width, drawing.height))
        try:
            self._pipe.send_bytes(json.dumps([drawing.svg(), width, height]).encode())
            png = self._pipe.recv_bytes(_LARGEST_IMAGE)
        except (EOFError, OSError) as error:
            raise DataError(f"{name}: {self._end()}: take another version of the package") from error
        if not png:  # no SVG, whatever else the set holds
            return None
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            square = Image.new("RGBA", (side, side))
            square.paste(image.convert("RGBA"), ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def _end(self) -> str:
        """Why the process has ended."""
        self._process.kill()
        status = self._process.wait()
        if status == -signal.SIGXCPU:
            return (
                f"takes more than {self.seconds} s of processor time to render, and icons take milliseconds"
            )
        return f"takes too much memory to render, or breaks the renderer (status {status})"


def _serve(pipe: Connection, seconds: int, memory: int) -> None:
    """Render what comes through a pipe, until its other end is closed or a limit is reached."""
    resvg = load_resvg()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # not on every system, and nobody may raise a limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    while True:
        try:
            svg, width, height = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        soft = ceil(time.process_time()) + seconds
        resource.setrlimit(
            resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
        )
        try:
            png = bytes(resvg.svg_to_bytes(svg_string=svg, width=width, height=height))
        except ValueError:
            png = b""
        pipe.send_bytes(png)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
