"""Requests that wait for a network, and the batches that are made of them."""

import asyncio
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from metaformer.deploy.server.channel import Message
from metaformer.deploy.server.errors import RequestError

MAX_WAITING_BYTES: Final = 1 << 30
"""Bytes of pixels and tensors in the queue."""
_numbers: Final = count(1)


@dataclass(eq=False)
class Job:
    """A request for a network."""

    kind: str
    """Method of `ServedNetwork` that answers it."""
    key: Hashable
    """Only requests of one key are computed together."""
    fields: dict[str, Any]
    """For the network's process."""
    buffer: bytes | memoryview
    """The same: pixels or tensors."""
    images: int = 1
    number: int = field(default_factory=lambda: next(_numbers))
    created: float = field(default_factory=time.monotonic)
    sent: float | None = None
    """When it was given to the network's process."""
    answer: asyncio.Future[Message] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def fail(self, error: Exception) -> None:
        """Answer with an error, if nobody did before."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """A bounded queue of requests, taken from it in batches.

    Args:
        limit: requests that may wait.
        max_batch: images of a batch.
        max_delay: seconds that the first of a batch waits for others.
    """

    def __init__(self, limit: int, max_batch: int, max_delay: float) -> None:
        self._limit, self._max_batch, self._max_delay = limit, max_batch, max_delay
        self._waiting: dict[int, Job] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job) -> None:
        """Let a request wait.

        Raises:
            RequestError: too many do.
        """
        waiting = sum(len(other.buffer) for other in self._waiting.values())
        if len(self._waiting) >= self._limit or waiting > MAX_WAITING_BYTES:
            raise RequestError(503, f"busy: {len(self._waiting)} requests wait already", retry_after=1)
        self._waiting[job.number] = job
        self._changed.set()

    def remove(self, job: Job) -> None:
        """Forget a request whose client has gone."""
        self._waiting.pop(job.number, None)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Answer all that wait with an error."""
        for job in self._waiting.values():
            job.fail(error)
        self._waiting.clear()

    async def take(self) -> list[Job]:
        """The next batch: a full one, or one whose first request has waited long enough."""
        while True:
            self._changed.clear()
            jobs = list(self._group())
            if not jobs:
                await self._changed.wait()
                continue
            rest = jobs[0].created + self._max_delay - time.monotonic()
            if rest <= 0 or sum(job.images for job in jobs) >= self._max_batch:
                for job in jobs:
                    del self._waiting[job.number]
                return jobs
            try:
                await asyncio.wait_for(self._changed.wait(), rest)
            except TimeoutError:
                continue

    def _group(self) -> Iterator[Job]:
        """The oldest request, and those after it that fit into its batch."""
        key, images = None, 0
        for job in self._waiting.values():
            if not images:
                key = job.key
            elif job.key != key or images + job.images > self._max_batch:
                continue
            images += job.images
            yield job
            if images >= self._max_batch:
                return
