"""A network in the server: its process, started again when it dies, and the requests for it."""

import asyncio
import logging
import time
from collections import deque
from typing import Any, Final

from metaformer.deploy.server.batcher import Batcher, Job
from metaformer.deploy.server.channel import Message
from metaformer.deploy.server.child import Child
from metaformer.deploy.server.errors import RequestError
from metaformer.deploy.server.metrics import Metrics
from metaformer.deploy.server.settings import ModelSettings, Settings

HEARTBEAT_TIMEOUT: Final = 4.0
"""Seconds without a sign of life after which a process is taken for dead."""
LOAD_TIMEOUT: Final = 600.0
"""Seconds that a network may take to load: the first graphs of a GPU are compiled meanwhile."""
MAX_DEATHS: Final = 5
"""Deaths of a process within `DEATHS_WINDOW` after which it is not started again."""
DEATHS_WINDOW: Final = 120.0
_log: Final = logging.getLogger(__name__)


class LoadingFailed(Exception):
    """A network cannot be loaded; the text says why."""


class Model:
    """A served network.

    Args:
        settings: what its process is started with.
        limits: of the server.
        metrics: counts its requests.
    """

    def __init__(self, settings: ModelSettings, limits: Settings, metrics: Metrics) -> None:
        self.name, self._settings, self._limits = settings.name, settings, limits
        self._metrics = metrics
        self.state = "loading"
        """`loading`, `ready`, `restarting`, `failed` or `stopping`."""
        self.about: dict[str, Any] = {}
        """What its process says of it; empty until it was loaded."""
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the network is ready for the first time, or will never be."""
        self._batcher = Batcher(limits.queue, limits.max_batch, limits.max_delay_ms / 1000)
        self._sent: dict[int, Job] = {}
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self.pid = 0
        """Of its process."""

    @property
    def ready(self) -> bool:
        """Whether it answers requests."""
        return self.state == "ready"

    def check(self) -> None:
        """Raise what a request is refused with.

        Raises:
            RequestError: the network is not ready.
        """
        if not self.ready:
            raise RequestError(
                503, f"model {self.name} is {self.state}", None if self.state == "failed" else 2
            )

    def add(self, job: Job) -> None:
        """Take a request.

        Raises:
            RequestError: the network is not ready, or too many requests wait.
        """
        if self.state != "stopping":  # what came before the signal is answered
            self.check()
        self._batcher.add(job)
        self._metrics.pending(self.name, len(self._batcher))

    def drop(self, job: Job) -> None:
        """Forget a request that nobody waits for any more."""
        self._batcher.remove(job)
        job.answer.cancel()

    async def run(self) -> None:
        """Keep a process, until this is canceled.

        Raises:
            LoadingFailed: the first one could not load the network.
        """
        while True:
            child = Child(self._settings)
            try:
                await self._live(child)
            finally:
                self._fail()
                await child.stop()
            now = time.monotonic()
            self._deaths.append(now)
            deaths = sum(now - death < DEATHS_WINDOW for death in self._deaths)
            if deaths >= MAX_DEATHS:
                self.state = "failed"
                _log.error("model %s: its process died %d times and is not started again", self.name, deaths)
                return
            _log.warning("model %s: its process died and is started again", self.name)
            self._metrics.restarted(self.name)
            await asyncio.sleep(2 ** (deaths - 1) - 1)  # what it misses may be coming: 0, 1, 3, 7 s

    def stop(self) -> None:
        """Take no more requests."""
        self.state = "stopping"

    def _fail(self) -> None:
        """Answer all requests: the process is dead."""
        if self.state == "ready":
            self.state = "restarting"
        error = RequestError(503, f"the process of model {self.name} died; it is being restarted", 5)
        for job in self._sent.values():
            job.fail(error)
        self._sent.clear()
        self._batcher.fail(error)

    async def _live(self, child: Child) -> None:
        """Load the network, and serve it until its process dies."""
        if not await self._load(child):
            return
        free = asyncio.Semaphore(1)
        dispatch = asyncio.create_task(self._dispatch(child, free))
        try:
            while (message := await self._next(child, HEARTBEAT_TIMEOUT)) is not None:
                if message.fields["kind"] == "free":
                    self._metrics.computed(self.name, message.fields["images"], message.fields["seconds"])
                    free.release()
                else:
                    self._answered(message)
                if self._stuck() or dispatch.done():
                    return
        finally:
            dispatch.cancel()

    async def _load(self, child: Child) -> bool:
        """Whether the process has loaded the network.

        Raises:
            LoadingFailed: it cannot be loaded.
        """
        begun = time.monotonic()
        while time.monotonic() - begun < LOAD_TIMEOUT:
            message = await self._next(child, LOAD_TIMEOUT)
            kind = message and message.fields["kind"]
            if message is None:
                return False
            if kind == "failed" and not self.loaded.done():
                raise LoadingFailed(message.fields["error"])
            if kind == "failed":  # its files have changed since: perhaps they are being written
                _log.warning("model %s: %s", self.name, message.fields["error"])
                return False
            if kind == "ready":
                self.about, self.pid = message.fields["model"], message.fields["pid"]
                if self.state != "stopping":
                    self.state = "ready"
                if not self.loaded.done():
                    self.loaded.set_result(None)
                return True
        return False

    async def _next(self, child: Child, seconds: float) -> Message | None:
        """The next message; None if the process is dead."""
        try:
            return await asyncio.wait_for(child.messages.get(), seconds)
        except TimeoutError:
            return None

    def _answered(self, message: Message) -> None:
        fields = message.fields
        job = self._sent.pop(fields.get("id", 0), None)
        if job is None or job.answer.done():
            return
        if fields["kind"] == "error":
            job.fail(RequestError(fields["status"], fields["error"]))
        else:
            job.answer.set_result(message)

    def _stuck(self) -> bool:
        """Whether the process computes for longer than anybody waits."""
        first = next(iter(self._sent.values()), None)
        return first is not None and time.monotonic() - (first.sent or 0) > 2 * self._limits.timeout

    async def _dispatch(self, child: Child, free: asyncio.Semaphore) -> None:
        """Give the process a batch whenever it has none."""
        while True:
            await free.acquire()
            jobs = await self._batcher.take()
            now = time.monotonic()
            for job in jobs:
                job.sent = now
                self._sent[job.number] = job
            self._metrics.pending(self.name, len(self._batcher))
            rows = [{"id": job.number, "count": job.images, **job.fields} for job in jobs]
            try:
                await child.send(Message({"batch": jobs[0].kind, "jobs": rows}, [job.buffer for job in jobs]))
            except OSError:  # that it is dead is known from its messages
                return
