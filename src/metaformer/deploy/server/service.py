"""What the server does with requests, whatever their addresses."""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from metaformer.color import to_hex
from metaformer.deploy.server.batcher import Job
from metaformer.deploy.server.body import RAW, BodyReader, find_image
from metaformer.deploy.server.channel import Message
from metaformer.deploy.server.decode import Decoder, Pixels
from metaformer.deploy.server.errors import RequestError
from metaformer.deploy.server.kserve import JSON_SIZE, encode_answer, read_request
from metaformer.deploy.server.metrics import Metrics
from metaformer.deploy.server.model import Model
from metaformer.deploy.server.reply import JSON, Reply
from metaformer.deploy.server.settings import Settings
from metaformer.process import cores
from metaformer.visualize.heat import COLORS

if TYPE_CHECKING:
    from starlette.requests import Request

PNG: Final = "image/png"
SHOWN: Final = ("task", "title", "classes", "colors", "thresholds", "draw_score")
"""What is said of a network."""


class Service:
    """Networks and limits.

    Args:
        models: by name, the first is the default.
        settings: limits.
        metrics: counts requests.
    """

    def __init__(self, models: Mapping[str, Model], settings: Settings, metrics: Metrics) -> None:
        self.models, self.settings, self.metrics = models, settings, metrics
        self.first = next(iter(models))
        """Name of the model for requests that name none."""
        self._reader = BodyReader(settings.max_upload)
        self._decoder = Decoder(settings.max_pixels, settings.queue + cores())

    def close(self) -> None:
        """End the threads."""
        self._decoder.close()

    def model(self, name: str) -> Model:
        """The model of this name.

        Raises:
            RequestError: there is none.
        """
        if name not in self.models:
            raise RequestError(404, f"no such model; there are {', '.join(self.models)}")
        return self.models[name]

    def ready_model(self, name: str) -> Model:
        """The model of this name, which answers requests.

        Raises:
            RequestError: there is none, or it does not.
        """
        model = self.model(name)
        model.check()
        return model

    def list_models(self) -> dict[str, Any]:
        """All models, the limits of requests, and the colors of heat maps from 0 to 1."""
        models = [
            {
                "name": model.name,
                **{field: model.about.get(field) for field in SHOWN},
                "ready": model.ready,
                "explain": model.about.get("explain", False),
            }
            for model in self.models.values()
        ]
        limits = {"max_upload": self.settings.max_upload, "max_pixels": self.settings.max_pixels}
        return {"models": models, **limits, "heat_colors": [to_hex(color) for color in COLORS]}

    async def predict(self, request: "Request", name: str) -> Reply:
        """A prediction as JSON, or drawn on the image where the client asks for a PNG."""
        begun, model = time.perf_counter(), self.ready_model(name)
        body = await self._reader.read(request)
        image = await self._image(request, body, model)
        draw = PNG in request.headers.get("accept", "").lower()
        job = Job("predict", "predict", {"size": image.size, "draw": draw}, image.rgb)
        answer = await self._compute(request, model, job, begun)
        if draw:
            return Reply(bytes(answer.buffers[0]), PNG)
        times = {
            "decode": image.seconds,
            "queue": _waited(job),
            **answer.fields["times"],
            "total": time.perf_counter() - begun,
        }
        envelope = {
            "model": name,
            "task": model.about["task"],
            "image": {"width": image.size[0], "height": image.size[1]},
            "milliseconds": {key: round(1000 * value, 3) for key, value in times.items()},
        }
        # the prediction is JSON already, and may be long
        text = json.dumps(envelope).encode()[:-1] + b', "prediction": ' + bytes(answer.buffers[0]) + b"}"
        return Reply(text, JSON)

    async def explain(self, request: "Request", name: str) -> Reply:
        """What the network looks at for a class, as a gray PNG of the image's size."""
        begun, model = time.perf_counter(), self.ready_model(name)
        index, box = read_question(request.query_params, len(model.about["classes"]))
        image = await self._image(request, await self._reader.read(request), model)
        fields = {"size": image.size, "index": index, "box": box}
        answer = await self._compute(request, model, Job("explain", object(), fields, image.rgb), begun)
        return Reply(bytes(answer.buffers[0]), PNG)

    async def infer(self, request: "Request", name: str) -> Reply:
        """Outputs of the network for tensors."""
        begun, model = time.perf_counter(), self.ready_model(name)
        body = await self._reader.read(request)
        size = request.headers.get(JSON_SIZE)
        question, build = await self._decoder.run(read_request, model, body, size, self.settings)
        answer = await self._compute(request, model, build(), begun)
        text, json_size = await self._decoder.run(encode_answer, model, question, answer)
        if json_size is None:
            return Reply(text, JSON)
        return Reply(text, RAW, headers={JSON_SIZE: str(json_size)})

    async def _image(self, request: "Request", body: bytes, model: Model) -> Pixels:
        """The image of a request."""
        background = model.about["background"]
        kind = request.headers.get("content-type", "")
        return await self._decoder.decode(
            lambda: find_image(kind, body), None if background is None else tuple(background)
        )

    async def _compute(self, request: "Request", model: Model, job: Job, begun: float) -> Message:
        """Wait for the answer to a request, unless its client goes, or for too long.

        Raises:
            RequestError: with the status and the line that answer the client.
        """
        try:
            model.add(job)
            answer = await self._answer(request, job)
        except BaseException:
            self.metrics.failed(model.name)
            raise
        finally:
            model.drop(job)
        self.metrics.answered(model.name, time.perf_counter() - begun, _waited(job))
        return answer

    async def _answer(self, request: "Request", job: Job) -> Message:
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            waited: set[asyncio.Future[Any]] = {job.answer, gone}
            await asyncio.wait(waited, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if job.answer.done():
                return job.answer.result()
            if gone.done():
                raise RequestError(400, "the client has gone")
            raise RequestError(504, f"no answer within {self.settings.timeout:g} seconds")
        finally:
            gone.cancel()


def read_question(query: Mapping[str, str], classes: int) -> tuple[int, list[float] | None]:
    """Class and box of a question what the network looks at.

    Raises:
        RequestError: they are missing, or are none.
    """
    index = query.get("index", "")
    if not (index.isascii() and index.isdigit() and len(index) < 9 and int(index) < classes):
        raise RequestError(400, f"index must be a class, 0 to {classes - 1}")
    if (box := query.get("box")) is None:
        return int(index), None
    try:
        sides = [float(side) for side in box[:200].split(",")]
    except ValueError:
        sides = []
    if (
        len(sides) != 4
        or not all(abs(side) < 1e6 for side in sides)
        or sides[2] <= sides[0]
        or sides[3] <= sides[1]
    ):
        raise RequestError(400, "box must be left, top, right and bottom, with commas between")
    return int(index), sides


def _waited(job: Job) -> float:
    """Seconds in the queue."""
    return (job.sent or job.created) - job.created


async def _disconnected(request: "Request") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
