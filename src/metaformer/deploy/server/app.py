"""The application: addresses, and errors as JSON."""

import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from metaformer.deploy.server.errors import RequestError
from metaformer.deploy.server.kserve import describe_model
from metaformer.deploy.server.openapi import ENDPOINTS, document
from metaformer.deploy.server.reply import Reply, json_reply
from metaformer.deploy.server.service import Service
from metaformer.deploy.server.static import INDEX, page_files
from metaformer.process import one_line

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Handlers:
    """What answers requests: a method for each of `ENDPOINTS`.

    Args:
        service: networks and limits.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._page = service, page_files()
        self._document = document(list(service.models), sorted(self._page))

    async def index(self, request: "Request") -> Reply:
        return Reply(*self._page[INDEX])

    async def static(self, request: "Request") -> Reply:
        file = request.path_params["file"]
        if file not in self._page:
            raise RequestError(404, "no such file")
        return Reply(*self._page[file])

    async def openapi(self, request: "Request") -> Reply:
        return json_reply(self._document)

    async def metrics(self, request: "Request") -> Reply:
        return Reply(*self._service.metrics.text())

    async def models(self, request: "Request") -> Reply:
        return json_reply(self._service.list_models())

    async def predict_first(self, request: "Request") -> Reply:
        return await self._service.predict(request, self._service.first)

    async def predict(self, request: "Request") -> Reply:
        return await self._service.predict(request, request.path_params["model"])

    async def explain(self, request: "Request") -> Reply:
        return await self._service.explain(request, request.path_params["model"])

    async def server(self, request: "Request") -> Reply:
        extensions = ["binary_tensor_data"]
        return json_reply({"name": "metaformer", "version": version("metaformer"), "extensions": extensions})

    async def live(self, request: "Request") -> Reply:
        return json_reply({"live": True})

    async def ready(self, request: "Request") -> Reply:
        models = self._service.models
        ready = all(model.ready for model in models.values())
        states = {name: model.state for name, model in models.items()}
        return json_reply({"ready": ready, "models": states}, 200 if ready else 503)

    async def model(self, request: "Request") -> Reply:
        return json_reply(describe_model(self._service.ready_model(request.path_params["model"])))

    async def model_ready(self, request: "Request") -> Reply:
        model = self._service.model(request.path_params["model"])
        values = {"name": model.name, "ready": model.ready, "state": model.state}
        return json_reply(values, 200 if model.ready else 503)

    async def infer(self, request: "Request") -> Reply:
        return await self._service.infer(request, request.path_params["model"])


def build_app(service: Service) -> "Starlette":
    """The application of a service."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    handlers = Handlers(service)
    routes = [
        Route(one.path, _endpoint(getattr(handlers, one.handler)), methods=[one.method]) for one in ENDPOINTS
    ]
    app = Starlette(routes=routes, exception_handlers=_error_handlers())
    app.router.redirect_slashes = False
    return app


def _endpoint(
    handler: Callable[["Request"], Awaitable[Reply]],
) -> Callable[["Request"], Awaitable["Response"]]:
    async def respond(request: "Request") -> "Response":
        return _response(await handler(request))

    return respond


def _response(reply: Reply) -> "Response":
    from starlette.responses import Response

    return Response(reply.content, reply.status, reply.headers, reply.media_type)


def _error_handlers() -> dict[Any, Callable[["Request", Any], Awaitable["Response"]]]:
    """Errors of all kinds as JSON."""

    def answer(status: int, text: str, headers: Mapping[str, str] | None = None) -> "Response":
        return _response(json_reply({"error": text}, status, headers))

    async def refused(request: "Request", error: RequestError) -> "Response":
        wait = error.retry_after
        return answer(error.status, error.text, None if wait is None else {"retry-after": str(wait)})

    async def by_status(request: "Request", error: Any) -> "Response":
        return answer(error.status_code, str(error.detail).lower(), error.headers)

    async def failed(request: "Request", error: Exception) -> "Response":
        return answer(500, "internal error")

    return {RequestError: refused, 404: by_status, 405: by_status, Exception: failed}


def log_requests(app: Any) -> Any:
    """An application of whose every answer there is a line on stderr."""

    async def call(scope: Any, receive: Any, send: Send) -> None:
        begun = time.perf_counter()

        async def send_and_log(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                milliseconds = 1000 * (time.perf_counter() - begun)
                line = f"{scope['method']} {scope['path']} {message['status']} {milliseconds:.1f} ms"
                print(one_line(line), file=sys.stderr, flush=True)
            await send(message)

        await app(scope, receive, send_and_log)

    return call
