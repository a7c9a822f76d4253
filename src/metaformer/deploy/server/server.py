"""`metaformer.serve`: networks behind HTTP until a signal comes."""

import asyncio
import contextlib
import importlib
import logging
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from metaformer.deploy.server.app import build_app, log_requests
from metaformer.deploy.server.metrics import Metrics
from metaformer.deploy.server.model import LoadingFailed, Model
from metaformer.deploy.server.protocol import HEADERS, KEEP_ALIVE, limited_protocol
from metaformer.deploy.server.service import Service
from metaformer.deploy.server.settings import ModelSettings, Settings, read_size
from metaformer.errors import ConfigError, MissingPackage
from metaformer.process import GRACE, STOP_SIGNALS, open_files_limit

RESERVED_FILES: Final = 128
"""Files that are open beside connections, and connections that are being refused."""
PACKAGES: Final = ("h11", "prometheus_client", "python_multipart", "starlette", "uvicorn")
"""What the extra `serve` brings."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
Models = str | Path | Sequence[str | Path | tuple[str, str | Path]] | Mapping[str, str | Path]
"""Runs, checkpoints, exported files or names of models, perhaps with the names that they are served under."""


def serve(
    models: Models,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch: int = 8,
    max_delay_ms: float = 5.0,
    queue: int = 32,
    timeout: float = 30.0,
    max_upload: str = "20MB",
    max_pixels: int = 25_000_000,
    max_connections: int = 256,
    no_optimize: bool = False,
    device: str = "auto",
    amp: Literal["none", "bf16", "fp16"] = "none",
    checkpoint: str | Path | None = None,
    class_names: str | Path | None = None,
    ema: bool = False,
    raw: bool = False,
    verbose: bool = False,
    import_files: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
    **options: Any,
) -> None:
    """Serve networks over HTTP, until SIGTERM or SIGINT.

    Each network has a process of its own, which is started again when it dies.

    Args:
        models: runs, checkpoints, exported files or names of models; in a mapping by the names that they
            have in addresses, else these are the names of their folders and files.
        host: address to listen on.
        port: port to listen on; 0 for any that is free.
        max_batch: images that a network computes at once.
        max_delay_ms: milliseconds that the first image of a batch waits for others.
        queue: requests that wait for a network; more are refused at once.
        timeout: seconds after which a request is given up.
        max_upload: largest body of a request, such as 20MB.
        max_pixels: largest image, in pixels.
        max_connections: open connections; more are refused at once.
        no_optimize: compute with the networks as they are, not in their exact inference form.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: mixed precision, of the networks as they are.
        checkpoint: weights for a model name, in any published format (default: its published ones).
        class_names: class names, or a file with one a line, where nothing else gives them.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.
        verbose: print a line for each request.
        import_files: Python files that register own mixers.
        on_ready: called with the address when all networks are ready.
        options: options of the networks' tasks, as `metaformer serve --help` lists them, such as `top_k`.

    Raises:
        ConfigError: a value out of range, names that are none, or a network that cannot be loaded.
        MissingPackage: the extra `serve` is not installed.
    """
    check_packages()
    settings = Settings(
        host=host,
        port=port,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        queue=queue,
        timeout=timeout,
        max_upload=read_size(max_upload, "max_upload"),
        max_pixels=max_pixels,
        max_connections=max_connections,
        verbose=verbose,
    )
    named = name_models(models)
    own = {"checkpoint": checkpoint, "class_names": class_names}
    if len(named) > 1 and (given := [name for name, value in own.items() if value is not None]):
        raise ConfigError(f"{given[0]}: of several networks: give each its own directory, and leave it out")
    loading = {
        **{name: value if value is None else str(value) for name, value in own.items()},
        **{"device": device, "amp": amp, "ema": ema, "raw": raw},
    }
    wanted = [
        ModelSettings(
            name=name,
            source=str(source),
            max_batch=max_batch,
            max_pixels=max_pixels,
            optimize=not no_optimize and amp == "none",
            loading=loading,
            options=options,
            imports=tuple(map(str, import_files)),
        )
        for name, source in named.items()
    ]
    with warnings.catch_warnings(action="ignore"), quiet_logs():  # about images of strangers
        asyncio.run(Server(settings, wanted, on_ready).run())


def check_packages() -> None:
    """Check that what the server needs is installed.

    Raises:
        MissingPackage: a package is not.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackage(error.name or package, "serve", "metaformer serve") from error


def name_models(models: Models) -> dict[str, str | Path]:
    """Networks by the names that they have in addresses.

    Raises:
        ConfigError: none are given, two have one name, or a name has other than letters, digits, `_`, `.`
            and `-`.
    """
    if isinstance(models, Mapping):
        pairs = list(models.items())
    else:
        sources = [models] if isinstance(models, str | Path) else models
        pairs = [source if isinstance(source, tuple) else (own_name(source), source) for source in sources]
    if not pairs:
        raise ConfigError("models: name at least one network to serve")
    named = dict(pairs)
    for name, source in pairs:
        if _NAME.fullmatch(name) is None:
            raise ConfigError(
                f"{source}: cannot be called {name!r:.100}: give a name of letters, digits, _, . and -"
            )
        if len(named) < len(pairs) and sum(name == other for other, _ in pairs) > 1:
            raise ConfigError(f"{source}: two networks are called {name}: give each a name of its own")
    return named


def own_name(source: str | Path) -> str:
    """The name of a folder, or of a file without its ending."""
    path = Path(source)
    return path.stem if path.is_file() else path.resolve().name


def split_name(text: str) -> tuple[str, str]:
    """Name and source of `NAME=SOURCE`, or of a source alone."""
    name, found, source = text.partition("=")
    return (name, source) if found and not Path(text).exists() else (own_name(text), text)


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Errors of the server alone: clients cause the warnings."""
    loggers = [
        logging.getLogger(name)
        for name in ("uvicorn", "asyncio", "python_multipart", "metaformer.data.image")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Server:
    """A running server.

    Args:
        settings: limits.
        models: the networks.
        on_ready: called with the address when all are ready.
    """

    def __init__(
        self, settings: Settings, models: Sequence[ModelSettings], on_ready: Callable[[str], None] | None
    ) -> None:
        self._settings, self._wanted, self._on_ready = settings, models, on_ready

    async def run(self) -> None:
        """Serve until a signal comes.

        Raises:
            ConfigError: it cannot listen, or a network cannot be loaded.
        """
        self._loop = asyncio.get_running_loop()
        _allow_files(self._settings.max_connections + RESERVED_FILES)
        listener = _listen(self._settings)
        metrics = Metrics([model.name for model in self._wanted])
        self.models = {model.name: Model(model, self._settings, metrics) for model in self._wanted}
        service = Service(self.models, self._settings, metrics)
        self.app = build_app(service)
        self._http = _http_server(self.app, self._settings)
        host, port = listener.getsockname()[:2]
        running = [asyncio.create_task(model.run()) for model in self.models.values()]
        serving = asyncio.create_task(self._http.serve([listener]))
        self._handle_signals()
        try:
            await self._until_ready(running, serving, f"http://{f'[{host}]' if ':' in host else host}:{port}")
            await serving
        finally:
            self._http.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            service.close()

    def _handle_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._loop.add_signal_handler(number, self._stop)

    def stop(self) -> None:
        """The same as a signal, from another thread."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        """Take no more requests; the second time, end those that are there."""
        for model in self.models.values():
            model.stop()
        self._http.force_exit = self._http.should_exit
        self._http.should_exit = True

    async def _until_ready(
        self, running: Sequence[asyncio.Task[None]], serving: asyncio.Task[None], url: str
    ) -> None:
        """Wait for the networks, or for a signal.

        Raises:
            ConfigError: one cannot be loaded.
        """
        loaded = asyncio.gather(*(model.loaded for model in self.models.values()))
        waited: set[asyncio.Future[Any]] = {loaded, serving, *running}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for task, model in zip(running, self.models.values(), strict=True):
            if not task.done():
                continue
            if isinstance(error := task.exception(), LoadingFailed):
                raise ConfigError(str(error))
            raise ConfigError(f"{model.name}: its process died again and again while it was loading")
        if loaded.done() and self._on_ready is not None:
            self._on_ready(url)
        loaded.cancel()


def _http_server(app: Any, settings: Settings) -> Any:
    """Uvicorn's server, which leaves signals to us."""
    import uvicorn

    config = uvicorn.Config(
        log_requests(app) if settings.verbose else app,
        http=limited_protocol(settings),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=list(HEADERS.items()),
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(GRACE),
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
    return server


def _allow_files(count: int) -> None:
    """Let this process open so many files: asyncio logs a connection that it has none for, again and again.

    Raises:
        ConfigError: it may not.
    """
    limit, left = open_files_limit(count)
    if left < count:
        raise ConfigError(
            f"max_connections: {count - RESERVED_FILES} connections need {count} open files, and {left} of "
            f"{limit} are left: choose fewer, or raise `ulimit -n`"
        )


def _listen(settings: Settings) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is no address, or taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=family, backlog=settings.max_connections
        )
    except OSError as error:
        raise ConfigError(f"host {settings.host}, port {settings.port}: {error.strerror or error}") from error
    # asyncio switches Nagle's algorithm off on connections of sockets that name their protocol, as this does
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())
