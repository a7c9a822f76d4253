"""Batches: full ones at once, others when the first has waited; one key each; a bounded queue."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from metaformer.deploy.server.batcher import Batcher, Job
from metaformer.deploy.server.errors import RequestError


def job(key: object = "a", images: int = 1) -> Job:
    return Job("predict", key, {}, b"", images)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))  # type: ignore[arg-type]


def test_a_full_batch_goes_at_once() -> None:
    async def test() -> None:
        batcher = Batcher(limit=10, max_batch=3, max_delay=60)
        jobs = [job() for _ in range(4)]
        for one in jobs:
            batcher.add(one)
        assert await batcher.take() == jobs[:3]
        assert len(batcher) == 1

    run(test)


def test_others_wait_for_the_delay_of_the_first() -> None:
    async def test() -> None:
        batcher = Batcher(limit=10, max_batch=3, max_delay=0.2)
        first = job()
        batcher.add(first)
        taking = asyncio.create_task(batcher.take())
        await asyncio.sleep(0.1)
        second = job()
        batcher.add(second)
        assert await taking == [first, second]
        assert time.monotonic() - first.created == pytest.approx(0.2, abs=0.09)

    run(test)


def test_a_batch_has_one_key_and_no_more_images_than_fit() -> None:
    async def test() -> None:
        batcher = Batcher(limit=10, max_batch=4, max_delay=0)
        jobs = [job("a", 2), job("b"), job("a", 3), job("a", 2), job("b", 9)]
        for one in jobs:
            batcher.add(one)
        batches = [await batcher.take() for _ in range(4)]
        assert batches == [[jobs[0], jobs[3]], [jobs[1]], [jobs[2]], [jobs[4]]]

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def test() -> None:
        batcher = Batcher(limit=2, max_batch=8, max_delay=60)
        batcher.add(job())
        batcher.add(waiting := job())
        with pytest.raises(RequestError, match="busy") as caught:
            batcher.add(job())
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
        batcher.remove(waiting)  # its client has gone
        batcher.add(job())

    run(test)


def test_who_leaves_is_in_no_batch() -> None:
    async def test() -> None:
        batcher = Batcher(limit=9, max_batch=2, max_delay=0.05)
        gone, stays = job(), job()
        batcher.add(gone)
        taking = asyncio.create_task(batcher.take())
        await asyncio.sleep(0)
        batcher.remove(gone)
        batcher.add(stays)
        assert await taking == [stays]

    run(test)
