"""A network's own process: it loads it, and computes one batch at a time.

It ends with the server, whose end closes the connection, however it comes.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from metaformer.deploy.server.channel import Channel, Message
from metaformer.deploy.server.errors import RequestError
from metaformer.errors import MetaFormerError, TrainingError

HEARTBEAT: Final = 0.5
"""Seconds between signs of life."""


class Worker:
    """A network that answers messages.

    Args:
        channel: to the server.
        settings: fields of `ModelSettings`.

    Raises:
        MetaFormerError: the network cannot be loaded.
    """

    def __init__(self, channel: Channel, settings: dict[str, Any]) -> None:
        from metaformer.deploy.server.network import ServedNetwork

        self._channel = channel
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._network = ServedNetwork(settings)
        self._kinds: dict[str, Callable[[list[dict[str, Any]], Sequence[Any]], list[Any]]] = {
            "predict": self._network.predict,
            "infer": self._network.infer,
            "explain": self._network.explain,
        }

    def run(self) -> None:
        """Answer until the server is gone."""
        threading.Thread(target=self._receive, daemon=True).start()
        threading.Thread(target=self._encode, daemon=True).start()
        self._send(Message({"kind": "ready", "pid": os.getpid(), "model": self._network.describe()}))
        while True:
            fields, buffers = self._inbox.get()
            self._compute(fields, buffers)

    def _receive(self) -> None:
        while True:
            with ends_with_server():
                self._inbox.put(self._channel.receive())

    def _send(self, message: Message) -> None:
        with ends_with_server():
            self._channel.send(message)

    def _encode(self) -> None:
        """Encode answers while the next batch is computed."""
        while True:
            self._outbox.get()()

    def _compute(self, fields: dict[str, Any], buffers: Sequence[Any]) -> None:
        jobs, start = fields["jobs"], time.perf_counter()
        answers = self._answers(self._kinds[fields["batch"]], jobs, buffers)
        seconds = time.perf_counter() - start
        self._send(
            Message({"kind": "free", "images": sum(job.get("count", 1) for job in jobs), "seconds": seconds})
        )

        def reply() -> None:
            for job, answer in zip(jobs, answers, strict=True):
                self._reply(job, answer, seconds)

        self._outbox.put(reply)

    def _answers(
        self,
        compute: Callable[[list[dict[str, Any]], Sequence[Any]], list[Any]],
        jobs: list[dict[str, Any]],
        buffers: Sequence[Any],
    ) -> list[Any]:
        """Answers of a batch; where one of its images is at fault, the others have theirs."""
        try:
            return compute(jobs, buffers)
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        return [self._answers(compute, [job], [buffer])[0] for job, buffer in zip(jobs, buffers, strict=True)]

    def _reply(self, job: dict[str, Any], answer: Any, seconds: float) -> None:
        start = time.perf_counter()
        try:
            if isinstance(answer, Exception):
                raise answer
            fields, buffers = answer()
        except Exception as error:
            status, text = failure(error)
            self._send(Message({"kind": "error", "id": job["id"], "status": status, "error": text}))
            return
        times = {"network": seconds, "encode": time.perf_counter() - start}
        self._send(Message({"kind": "answer", "id": job["id"], "times": times, **fields}, buffers))


@contextmanager
def ends_with_server() -> Iterator[None]:
    """End this process where the server is gone: nobody waits for what is being computed."""
    try:
        yield
    except OSError:
        os._exit(0)


def failure(error: Exception) -> tuple[int, str]:
    """HTTP status and text of an error; what is no fault of the request is written to standard error."""
    if isinstance(error, RequestError):
        return error.status, error.text
    if isinstance(error, MetaFormerError) and not isinstance(error, TrainingError):
        return 400, str(error)
    traceback.print_exception(error)
    return 500, "the network failed on this request"


def beat(channel: Channel) -> None:
    """Say again and again that this process runs."""
    while True:
        with ends_with_server():
            channel.send(Message({"kind": "alive"}))
        time.sleep(HEARTBEAT)


def main() -> int:
    """Serve the connection that is standard input; exit status 1 where the network cannot be loaded."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the server, which ends this process
        signal.signal(number, signal.SIG_IGN)
    from metaformer.process import keep_freed_memory, sleep_rather_than_spin

    keep_freed_memory()
    sleep_rather_than_spin()
    channel = Channel(socket.socket(fileno=os.dup(sys.stdin.fileno())))
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    settings = channel.receive().fields
    threading.Thread(target=beat, args=(channel,), daemon=True).start()
    try:
        worker = Worker(channel, settings)
    except MetaFormerError as error:
        channel.send(Message({"kind": "failed", "error": str(error)}))
        return 1
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
