"""A network's process, seen from the server."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict

from metaformer.deploy.server.channel import Channel, Message
from metaformer.deploy.server.settings import ModelSettings

PYTHON: Sequence[str] = (sys.executable,)
"""Command of the interpreter."""


class Child:
    """A process of its own, whose messages come into a queue; None at its end.

    Args:
        settings: what it serves.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*PYTHON, "-m", "metaformer.deploy.server.worker"],
                stdin=theirs.fileno(),
                start_new_session=True,  # Ctrl-C in a terminal is for the server
            )
        self._channel = Channel(ours)
        threading.Thread(target=self._receive, daemon=True).start()
        self._channel.send(Message(asdict(settings)))

    async def send(self, message: Message) -> None:
        """Send a message, which may take a while: images are large.

        Raises:
            OSError: the process is gone.
        """
        await asyncio.to_thread(self._channel.send, message)

    def _receive(self) -> None:
        message: Message | None
        while True:
            try:
                message = self._channel.receive()
            except OSError:
                message = None
            try:
                self._loop.call_soon_threadsafe(self.messages.put_nowait, message)
            except RuntimeError:  # the server's loop has ended
                return
            if message is None:
                return

    async def stop(self) -> None:
        """End the process, at once."""
        self._channel.close()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
