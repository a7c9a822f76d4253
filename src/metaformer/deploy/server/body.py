"""Bodies of requests: read within limits, and the image in them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from metaformer.deploy.server.errors import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request

FIELD: Final = "image"
"""Name of the form's field that holds the image."""
RAW: Final = "application/octet-stream"
FORM: Final = "multipart/form-data"
MAX_BODIES: Final = 16
"""How many bodies of the largest size all requests together may hold in memory."""
MAX_PARTS: Final = 16
_MAX_PART_HEADER: Final = 4096
"""Bytes of the name or the value of a header of a part."""


class BodyReader:
    """Reads bodies into memory, each up to a limit, and all together up to `MAX_BODIES` times that.

    Args:
        limit: bytes of a body.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._in_memory = limit, 0

    async def read(self, request: "Request") -> bytes:
        """The body.

        Raises:
            RequestError: it is too large, or too many are being read.
        """
        self._check_length(request.headers.get("content-length"))
        if "content-encoding" in request.headers:
            raise RequestError(415, "the body must not be compressed")
        body, more = bytearray(), True
        try:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise RequestError(400, "the client has gone")
                body += message.get("body", b"")
                self._in_memory += len(message.get("body", b""))
                more = message.get("more_body", False)
                self._check(len(body))
            return bytes(body)
        finally:
            self._in_memory -= len(body)

    def _check_length(self, text: str | None) -> None:
        if text is not None and (read_length(text) or 0) > self._limit:
            raise self._too_large()

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise self._too_large()
        if self._in_memory > MAX_BODIES * self._limit:
            raise RequestError(503, "busy: too many uploads at once", retry_after=1)

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the body is larger than {self._limit:,} bytes")


def read_length(text: str) -> int | None:
    """A number of bytes in a header; None for something else. Python refuses thousands of digits."""
    return int(text[:20]) if text.isascii() and text.isdigit() else None


def find_image(content_type: str, body: bytes) -> bytes:
    """The encoded image in a body.

    Args:
        content_type: header of the request.
        body: a form with the field `image`, or the image itself.

    Raises:
        RequestError: it is neither.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == FORM:
        return form_field(content_type, body)
    if kind == RAW or kind.startswith("image/"):
        return body
    raise RequestError(
        415, f"send the image as {FORM} in the field {FIELD!r}, or as the body with image/… or {RAW}"
    )


def form_field(content_type: str, body: bytes) -> bytes:
    """The field `image` of a form; file names are not looked at.

    Raises:
        RequestError: the form is damaged, or has no such field or several.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary or len(boundary) > 256:
        raise RequestError(400, f"{FORM} without a boundary")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, "the form is damaged") from error
    if not parts.complete:
        raise RequestError(400, "the form is cut off")
    found = [
        data for header, data in parts.found if parse_options_header(header)[1].get(b"name") == FIELD.encode()
    ]
    if len(found) != 1:
        raise RequestError(400, f"the form must have the field {FIELD!r} once")
    return bytes(found[0])


class _Parts:
    """Parts of a form as its parser finds them."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytearray]] = []
        """Disposition and content of each."""
        self.complete = False
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> Any:
        calls: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": lambda data, start, end: self._extend(self._name, data[start:end]),
            "on_header_value": lambda data, start, end: self._extend(self._value, data[start:end]),
            "on_header_end": self._header,
            "on_end": self._end,
        }
        return calls

    def _begin(self) -> None:
        if len(self.found) == MAX_PARTS:
            raise RequestError(400, f"the form has more than {MAX_PARTS} parts")
        self.found.append((b"", bytearray()))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.found[-1][1].extend(memoryview(data)[start:end])

    def _extend(self, text: bytearray, more: bytes) -> None:
        text += more
        if len(text) > _MAX_PART_HEADER:
            raise RequestError(400, "a header of the form is too long")

    def _header(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            self.found[-1] = (bytes(self._value), self.found[-1][1])
        self._name, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        self.complete = True
