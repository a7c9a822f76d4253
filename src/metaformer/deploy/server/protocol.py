"""HTTP on a socket, for clients that are not to be trusted: few connections, deadlines, and limits of size.

uvicorn gives up no connection whose headers or body come slowly, and reads the rest of a body that nobody
wants; here a request has so many seconds, and more for each byte that came.
"""

import asyncio
import http
import json
from typing import TYPE_CHECKING, Any, Final

from metaformer.deploy.server.settings import Settings

if TYPE_CHECKING:
    from h11 import Connection
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:  # an extra; `limited_protocol` adds the bases
    Connection = H11Protocol = object

BASE_TIMEOUT: Final = 10.0
"""Seconds for a request to come, and for an answer to be fetched, whatever its size."""
MIN_RATE: Final = 50_000
"""Bytes of either that add a second."""
KEEP_ALIVE: Final = 75
"""Seconds that a connection may wait for its next request: more than the 60 for which proxies keep theirs. A
request that crosses the end of its connection is lost, and clients do not send a POST again."""
FRAMING: Final = 1 << 15
"""Bytes of headers, and of what chunks add to a body."""
READ_SIZE: Final = 1 << 15
"""Bytes that are read at once, and so beyond a limit."""
MAX_HEADER_BYTES: Final = 1 << 14
HTTP_VERSIONS: Final = (b"1.0", b"1.1")
FREE_CHUNKS: Final = 1000
"""Chunks of a body that may be small; more must have `MEAN_CHUNK` bytes on the average."""
MEAN_CHUNK: Final = 128
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Of every answer."""


def error_response(status: int, text: str, *headers: str) -> bytes:
    """An answer with an error, after which the connection is closed."""
    body = json.dumps({"error": text}).encode()
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in HEADERS.items()),
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class LimitedParser(Connection):
    """Parser of requests that gives up on bodies in tiny chunks, each of which takes time."""

    status = 400
    """Of the error that it found."""
    chunks = size = 0
    """Of the body so far."""

    def next_event(self) -> Any:
        import h11

        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.status = error.error_status_hint
            raise
        if isinstance(event, h11.Request):
            self.chunks = self.size = 0
            if event.http_version not in HTTP_VERSIONS:
                raise h11.RemoteProtocolError("another version")
        elif isinstance(event, h11.Data):
            self.chunks, self.size = self.chunks + 1, self.size + len(event.data)
            if self.chunks > FREE_CHUNKS + self.size // MEAN_CHUNK:
                self.status = 413
                raise h11.RemoteProtocolError("tiny chunks")
        return event


class CoalescingTransport:
    """A transport that sends head and body of an answer at once: what is written in an iteration of the loop.

    Args:
        transport: sends it.
        loop: the event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._parts = transport, loop, list[bytes]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        """Send what was written."""
        data, self._parts = b"".join(self._parts), []
        if data:
            self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._parts)) + self._transport.get_write_buffer_size()

    def close(self) -> None:
        self.flush()
        self._transport.close()


class LimitedProtocol(H11Protocol):
    """A connection with deadlines and limits of size."""

    settings: Settings
    parser: type[LimitedParser]
    received = 0
    """Bytes of the request that is being read."""
    began = 0.0
    """When it began, on the loop's clock."""
    reading: asyncio.TimerHandle | None = None
    """Ends the reading of a request."""
    writing: asyncio.TimerHandle | None = None
    """Ends the writing of an answer."""

    def connection_made(self, transport: Any) -> None:
        import h11

        super().connection_made(transport)
        self.transport = CoalescingTransport(transport, self.loop)  # type: ignore[assignment]
        self.conn = self.parser(h11.SERVER, MAX_HEADER_BYTES)
        transport.max_size = READ_SIZE
        transport.set_write_buffer_limits(0)  # `pause_writing` whenever a client has yet to fetch something
        if len(self.connections) > self.settings.max_connections and not self.close_idle():
            self.refuse(503, "busy: too many connections", "retry-after: 1")
        else:
            self.begin()

    def close_idle(self) -> bool:
        """Close the connection that has waited longest for its next request; returns whether there is one."""
        ours = [one for one in self.connections if isinstance(one, LimitedProtocol)]
        idle = {
            one.timeout_keep_alive_task.when(): one
            for one in ours
            if one.timeout_keep_alive_task is not None and not one.transport.is_closing()
        }
        if idle:
            idle[min(idle)].timeout_keep_alive_handler()
        return bool(idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()
        self.fetched()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the client time to fetch its answer, and cut it off then."""
        super().pause_writing()
        seconds = BASE_TIMEOUT + self.transport.get_write_buffer_size() / MIN_RATE
        self.writing = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self.fetched()
        super().resume_writing()

    def fetched(self) -> None:
        """The client has all that was sent."""
        if self.writing is not None:
            self.writing.cancel()
            self.writing = None

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.received += len(data)
        if self.received > self.settings.max_upload + FRAMING:
            self.refuse(413, f"the body is larger than {self.settings.max_upload:,} bytes")
        else:
            super().data_received(data)

    def handle_events(self) -> None:
        import h11

        super().handle_events()
        state = self.conn.their_state
        if state is not h11.SEND_BODY and not (state is h11.IDLE and self.conn.trailing_data[0]):
            self.end()
        elif self.reading is None:
            self.begin()

    def begin(self) -> None:
        """Expect a request."""
        if not self.transport.is_closing():
            self.began = self.loop.time()
            self.reading = self.loop.call_later(BASE_TIMEOUT, self.check)

    def end(self) -> None:
        """Have one."""
        self.received = 0
        if self.reading is not None:
            self.reading.cancel()
            self.reading = None

    def check(self) -> None:
        """Close the connection, or give the request time for what came meanwhile."""
        rest = self.began + BASE_TIMEOUT + self.received / MIN_RATE - self.loop.time()
        if rest > 0:
            self.reading = self.loop.call_later(rest, self.check)
        else:
            self.refuse(408, "the request came too slowly")

    def refuse(self, status: int, text: str, *headers: str) -> None:
        """Answer with an error, unless there is an answer already, and close the connection."""
        self.end()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(error_response(status, text, *headers))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        found = self.conn.status if isinstance(self.conn, LimitedParser) else 400
        status = found if found < 500 else 400
        self.refuse(status, http.HTTPStatus(status).phrase.lower())

    def on_response_complete(self) -> None:
        import h11

        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # nobody wants the rest
            self.transport.close()


def limited_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """Uvicorn's protocol within the limits of a server."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    parser = type("RequestParser", (LimitedParser, h11.Connection), {})
    return type("Protocol", (LimitedProtocol, H11Protocol), {"settings": settings, "parser": parser})
