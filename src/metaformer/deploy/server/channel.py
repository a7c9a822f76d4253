"""Messages between the server and a network's process: a JSON object, and buffers of bytes behind it."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

_HEAD: Final = struct.Struct("!II")
"""Bytes of the JSON object, and number of buffers."""
_SIZE: Final = struct.Struct("!Q")


class Message(NamedTuple):
    """What one side says to the other."""

    fields: dict[str, Any]
    buffers: Sequence[bytes | bytearray | memoryview] = ()


class Channel:
    """One end of a connection; several threads may send, one receives.

    Args:
        connection: a stream socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone.
        """
        fields = json.dumps(message.fields).encode()
        sizes = b"".join(_SIZE.pack(memoryview(buffer).nbytes) for buffer in message.buffers)
        with self._lock:
            self._connection.sendall(_HEAD.pack(len(fields), len(message.buffers)) + sizes + fields)
            for buffer in message.buffers:
                self._connection.sendall(buffer)

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            OSError: the other side is gone.
        """
        size, count = _HEAD.unpack(self._read(_HEAD.size))
        sizes = [_SIZE.unpack(self._read(_SIZE.size))[0] for _ in range(count)]
        return Message(json.loads(self._read(size)), [self._read(size) for size in sizes])

    def close(self) -> None:
        """End the connection, for a thread that receives, too."""
        with contextlib.suppress(OSError):  # the other side may have done it
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, size: int) -> bytearray:
        data, start = bytearray(size), 0
        with memoryview(data) as view:
            while start < size:
                count = self._connection.recv_into(view[start:])
                if not count:
                    raise ConnectionError("the other side is gone")
                start += count
        return data
