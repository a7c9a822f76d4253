"""Bodies of requests to images: a bounded number of threads, a few formats, and no files."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from metaformer.color import Color
from metaformer.data.image import decode_image
from metaformer.deploy.server.errors import RequestError
from metaformer.errors import BadImage, DataError, TooManyPixels
from metaformer.process import cores


class Pixels(NamedTuple):
    """A decoded image."""

    size: tuple[int, int]
    """Width and height."""
    rgb: bytes
    seconds: float
    """That it took."""


class Decoder:
    """Images from encoded ones.

    Args:
        max_pixels: larger images are refused by their header.
        limit: calls that may wait for a thread.
    """

    def __init__(self, max_pixels: int, limit: int) -> None:
        self._max_pixels, self._limit, self._calls = max_pixels, limit, 0
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="decode")

    async def decode(self, find: Callable[[], bytes], background: Color | None) -> Pixels:
        """The pixels of an image, turned upright.

        Args:
            find: gives the encoded image.
            background: color that transparent pixels are blended on.

        Raises:
            RequestError: it is too large, damaged or no image.
        """
        decoded: Pixels = await self.run(self._decode, find, background)
        return decoded

    async def run(self, function: Any, *args: Any) -> Any:
        """Call a function in a thread of the pool.

        Raises:
            RequestError: too many wait for one.
        """
        if self._calls >= self._limit:
            raise RequestError(503, "busy: too many images are being decoded", retry_after=1)
        self._calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        finally:
            self._calls -= 1

    def close(self) -> None:
        """End the threads when they have nothing more to do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, find: Callable[[], bytes], background: Color | None) -> Pixels:
        begun = time.perf_counter()
        body = find()
        if not body:
            raise RequestError(400, "the body is empty: send an image")
        try:
            image = decode_image(body, "image", self._max_pixels, background=background)
        except TooManyPixels as error:
            raise RequestError(413, f"image: {error.reason}") from error
        except BadImage as error:
            raise RequestError(400, f"image: {error.reason}") from error
        except DataError as error:
            raise RequestError(503, "too little memory to decode the image", 1) from error
        return Pixels(image.size, image.tobytes(), time.perf_counter() - begun)
