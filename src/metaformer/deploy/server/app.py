"""The application: addresses, and errors as JSON."""

import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from metaformer.deploy.server.batcher import Refused
from metaformer.deploy.server.kserve import describe_model
from metaformer.deploy.server.openapi import document
from metaformer.deploy.server.service import Service
from metaformer.deploy.server.static import INDEX, page_files
from metaformer.process import one_line

if TYPE_CHECKING:
    from fastapi import FastAPI

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def build_app(service: Service) -> "FastAPI":
    """The application of a service."""
    from fastapi import FastAPI

    app = FastAPI(title="metaformer", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_page(app, service)
    _add_models(app, service)
    _add_protocol(app, service)
    _add_errors(app)
    return app


def _add_page(app: "FastAPI", service: Service) -> None:
    """The page, and what is for programs that watch the server."""
    from fastapi import Response
    from fastapi.responses import JSONResponse

    page = page_files()
    described = document(list(service.models), sorted(page))

    @app.get("/")
    async def index() -> Response:
        return Response(page[INDEX].content, media_type=page[INDEX].type)

    @app.get("/static/{file:path}")
    async def static(file: str) -> Response:
        if file not in page:
            raise Refused(404, "no such file")
        return Response(page[file].content, media_type=page[file].type)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(described)

    @app.get("/metrics")
    async def metrics() -> Response:
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)


def _add_models(app: "FastAPI", service: Service) -> None:
    """Images in, predictions out."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse

    @app.get("/models")
    async def models() -> Response:
        return JSONResponse(service.list_models())

    @app.post("/predict")
    async def predict_first(request: Request) -> Response:
        return await service.predict(request, service.first)

    @app.post("/predict/{model}")
    async def predict(model: str, request: Request) -> Response:
        return await service.predict(request, model)

    @app.post("/explain/{model}")
    async def explain(model: str, request: Request) -> Response:
        return await service.explain(request, model)


def _add_protocol(app: "FastAPI", service: Service) -> None:
    """The Open Inference Protocol v2."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse

    @app.get("/v2")
    async def server() -> Response:
        extensions = ["binary_tensor_data"]
        return JSONResponse(
            {"name": "metaformer", "version": version("metaformer"), "extensions": extensions}
        )

    @app.get("/v2/health/live")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        states = {name: model.state for name, model in service.models.items()}
        good = all(model.ready for model in service.models.values())
        return JSONResponse({"ready": good, "models": states}, 200 if good else 503)

    @app.get("/v2/models/{model}")
    async def model_metadata(model: str) -> Response:
        return JSONResponse(describe_model(service.ready_model(model)))

    @app.get("/v2/models/{model}/ready")
    async def model_ready(model: str) -> Response:
        found = service.model(model)
        return JSONResponse(
            {"name": model, "ready": found.ready, "state": found.state}, 200 if found.ready else 503
        )

    @app.post("/v2/models/{model}/infer")
    async def infer(model: str, request: Request) -> Response:
        return await service.infer(request, model)


def _add_errors(app: "FastAPI") -> None:
    """Errors of all kinds as JSON."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse

    def answer(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
        return JSONResponse({"error": text}, status, None if headers is None else dict(headers))

    async def refused(request: Request, error: Any) -> Response:
        wait = error.retry_after
        return answer(error.status, error.text, None if wait is None else {"retry-after": str(wait)})

    async def by_status(request: Request, error: Any) -> Response:
        return answer(error.status_code, str(error.detail).lower(), error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        return answer(500, "internal error")

    app.add_exception_handler(Refused, refused)
    for status in (404, 405):
        app.add_exception_handler(status, by_status)
    app.add_exception_handler(Exception, failed)


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
