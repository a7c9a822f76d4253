"""New processes in milliseconds: forked from one that has imported the library, which takes them seconds.

`[*python(), "-c", CODE]` stands for `[sys.executable, "-c", CODE]` in a test's command; so with `-m MODULE`
or a file. The program has the command's arguments, folder, environment and standard streams, a session of
its own, Python's own signal handlers and an interpreter's exit. The command passes signals on to it, ends as
it does, and takes it along when it is killed. Where no fork can be what was asked for, the command is a real
process: for other options of Python, and for an environment that differs in what Python, its allocator or
OpenMP read as they start. Forks have one hash seed, though, and not the command's limits (`ulimit`): what is
about these, about imports or about memory takes `sys.executable`.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NoReturn

PRELOAD = [
    *("metaformer.training.train", "metaformer.inference.evaluate", "metaformer.inference.predictor"),
    *("metaformer.bench.catalog", "metaformer.bench.run", "metaformer.deploy.optimize"),
    *(
        f"metaformer.cli.{name}"
        for name in ("bench", "data", "evaluate", "explain", "listing", "predict", "runs", "train")
    ),
    *(
        f"metaformer.tasks.{name}.spec"
        for name in ("classification", "multilabel", "segmentation", "detection")
    ),
    *("timm.data", "torch.utils.tensorboard", "sklearn.datasets"),
    *("jsonargparse", "docstring_parser", "jinja2", "captum.attr"),
]
"""All that commands of short runs import; none of it starts a thread."""
AT_START = ("PYTHON", "LANG", "LC_", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "GLIBC_", "LD_")
"""How the variables begin that are read as a process starts; of PYTHONPATH, the fork takes note."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
NUMBER = struct.Struct("!q")
SERVERS = 2
"""As many as one test asks for at once."""
START = 120.0
"""Seconds until a server must listen."""
UNLIKE = -1
"""In place of a process id: no fork can be this process."""


def at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that is read as a process starts."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(AT_START) and name != "PYTHONPATH"
    }


# In tests


class Server:
    """A process that forks, once it listens at its address; it ends with this one."""

    def __init__(self) -> None:
        self.address = f"{tempfile.mkdtemp(prefix='forks-')}/socket"
        reader, self._life = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", self.address, str(reader)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[reader],
            start_new_session=True,
        )
        os.close(reader)

    def stop(self) -> None:
        """End it, so that its processor time is known to this process."""
        os.close(self._life)
        self._process.wait()


servers: list[Server] = []
"""Those that this process has started."""
addresses: list[str] = []
"""Of the servers by number: they differ in the seed of hashes, and so in the order of sets."""


def share() -> list[str]:
    """Addresses for the processes of pytest-xdist, whose servers are those of this one."""
    while len(servers) < SERVERS:
        servers.append(Server())
    return [server.address for server in servers]


@cache
def address(number: int) -> str:
    """That of a server, which listens; it is started when it is first needed, if nobody shares one."""
    while len(addresses) <= number:
        servers.append(Server())
        addresses.append(servers[-1].address)
    limit = time.monotonic() + START
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(addresses[number])
                return addresses[number]
            except OSError:
                assert time.monotonic() < limit, "no process that forks"
        time.sleep(0.02)


def stop() -> None:
    """End the processes that fork."""
    while servers:
        servers.pop().stop()


def python(number: int = 0) -> tuple[str, ...]:
    """A command that stands for `sys.executable`, by the server of this number."""
    if not hasattr(os, "pidfd_open"):  # not on Linux
        return (sys.executable,)
    return (sys.executable, "-IS", __file__, "run", address(number))


class Unlike(Exception):
    """A program that no fork can be."""


class Fork:
    """A forked program, with the part of `subprocess.Popen` that tests of signals need.

    Args:
        address: of the process that forks.
        args: what stands after `python` in a command.
        environment: of the program.
        streams: file descriptors of its standard input, output and error.

    Raises:
        Unlike: it must be a real process.
    """

    def __init__(
        self, address: str, args: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]
    ) -> None:
        if args[0].startswith("-") and args[0] not in ("-c", "-m", "-W"):
            raise Unlike
        self._connection = socket.socket(socket.AF_UNIX)
        request = json.dumps([list(args), dict(environment), os.getcwd()]).encode()
        try:
            self._connection.connect(address)
            socket.send_fds(self._connection, [NUMBER.pack(len(request))], streams)
            self._connection.sendall(request)
            self.pid = NUMBER.unpack(receive(self._connection, NUMBER.size))[0]
        except OSError:
            raise Unlike from None
        if self.pid == UNLIKE:
            raise Unlike
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit status, or minus the signal; None while it runs."""
        with contextlib.suppress(TimeoutError):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status.

        Raises:
            TimeoutError: it takes longer.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise TimeoutError
            self.returncode = int(NUMBER.unpack(receive(self._connection, NUMBER.size))[0])
            self._connection.close()
        return self.returncode


def start(
    command: Sequence[str], environment: Mapping[str, str], output: BinaryIO, fork: bool = True
) -> "subprocess.Popen[bytes] | Fork":
    """Start a command in a session of its own, if possible as a fork, whose process id is the program's."""
    if fork and command[0] == sys.executable and hasattr(os, "pidfd_open"):
        with contextlib.suppress(Unlike), open(os.devnull) as nothing:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            return Fork(address(0), command[1:], environment, streams)
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: the other end was closed before.
    """
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


# The command


def run(address: str, *args: str) -> NoReturn:
    """Be `python ARGS`: pass signals on to the fork, and end as it does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # the program may run before it is known here
    try:
        program = Fork(address, args, os.environ, (0, 1, 2))
    except Unlike:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.execv(sys.executable, [sys.executable, *args])
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(program.pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    status = program.wait()
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# The process that forks


def serve(address: str, life: int) -> list[str]:
    """Fork for each command, until `life` is closed; returns in the forks, with the arguments of `python`."""
    start, path = at_start(os.environ), base_path()
    for name in PRELOAD:
        importlib.import_module(name)
    assert threading.active_count() == 1, "forks would lack the others"
    gc.collect()
    gc.freeze()  # the forks share what is never visited
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    ready.register(life, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is life:
                end(ready, address)
            elif key.fileobj is listener:
                args = accept(listener.accept()[0], ready, start, path)
                if args:
                    return args
            elif key in ready.get_map().values():  # not closed because of another that was ready, too
                finish(key, ready)


def accept(
    client: socket.socket, ready: selectors.BaseSelector, start: dict[str, str], path: list[str]
) -> list[str]:
    """Fork for a command; returns its arguments in the fork, nothing otherwise."""
    size, streams, _, _ = socket.recv_fds(client, NUMBER.size, 3)
    try:
        args, environment, folder = json.loads(receive(client, NUMBER.unpack(size)[0]))
    except (ConnectionError, struct.error):  # it was killed meanwhile
        client.close()
        return []
    pid = os.fork() if at_start(environment) == start else UNLIKE
    if pid == 0:
        os.setsid()
        for part in [client, ready, *(key.fileobj for key in ready.get_map().values())]:
            os.close(part) if isinstance(part, int) else part.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        reopen("stdin", 0, "r")
        reopen("stdout", 1, "w")
        reopen("stderr", 2, "w", buffering=1)
        settle(environment, folder, path)
    for stream in streams:
        os.close(stream)
    if pid == 0:
        return list(args)
    with contextlib.suppress(OSError):
        client.sendall(NUMBER.pack(pid))
    if pid == UNLIKE:
        client.close()
        return []
    process = os.pidfd_open(pid)
    ready.register(process, selectors.EVENT_READ, (pid, client))
    ready.register(client, selectors.EVENT_READ, (pid, process))
    return []


def reopen(name: str, descriptor: int, mode: str, buffering: int = -1) -> None:
    """A standard stream as Python opens it; it keeps whether its file can be sought, for one thing."""
    old = getattr(sys, name)
    new = open(descriptor, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115
    setattr(sys, name, new)
    setattr(sys, f"__{name}__", new)


def settle(environment: dict[str, str], folder: str, path: list[str]) -> None:
    """What a new process has of its own."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *path]
    for name in ("numpy.random", "torch"):  # Python's own generator begins anew by itself
        importlib.import_module(name).seed()


def finish(key: selectors.SelectorKey, ready: selectors.BaseSelector) -> None:
    """A fork has ended, or its command has, and the fork must."""
    pid, other = key.data
    client, process = (other, key.fd) if isinstance(other, socket.socket) else (key.fileobj, other)
    if key.fileobj is client:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it had not yet a session, or no other process in it
            os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(NUMBER.pack(status))
    for part in (client, process):
        ready.unregister(part)
    client.close()
    os.close(process)


def end(ready: selectors.BaseSelector, address: str) -> NoReturn:
    """Kill all forks that still run."""
    for key in list(ready.get_map().values()):
        if key.data is not None and isinstance(key.fileobj, socket.socket):
            finish(key, ready)
    Path(address).unlink()
    Path(address).parent.rmdir()
    os._exit(0)


def base_path() -> list[str]:
    """`sys.path` without this file's folder and PYTHONPATH."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return sys.path[1 + len(given) :]


def execute(args: list[str]) -> None:
    """Run a program in a new `__main__`, as Python does."""
    while args[0] == "-W":
        importlib.import_module("warnings").simplefilter(args[1])
        sys.warnoptions.append(args[1])
        args = args[2:]
    main = sys.modules["__main__"] = ModuleType("__main__")
    if args[0] == "-m":
        sys.argv = args[1:]
        sys.path.insert(0, os.getcwd())
        importlib.import_module("runpy").run_module(args[1], run_name="__main__", alter_sys=True)
        return
    if args[0] == "-c":
        name, text = "<string>", args[1].encode()
        sys.argv, first = ["-c", *args[2:]], ""
    else:
        name, text = args[0], Path(args[0]).read_bytes()
        sys.argv, first = args, str(Path(name).resolve().parent)
        main.__file__ = name
    sys.path.insert(0, first)
    exec(compile(text, name, "exec"), vars(main))


class Exit:
    """The end of a fork, registered before all other functions of `atexit`, so called after them.

    What is left of an interpreter's exit, to take all modules apart, would copy the memory that forks share.
    """

    status: int | None = None
    """Of the program; None in the process that forks."""

    def __call__(self) -> None:
        if self.status is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        if self.status == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(self.status)

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        """Context of the program, whose exception Python then prints."""
        self.status = 0
        try:
            yield
        except SystemExit as stop:
            self.status = stop.code & 0xFF if isinstance(stop.code, int) else int(stop.code is not None)
            raise
        except BaseException as error:
            self.status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
            raise


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(*sys.argv[2:])
    atexit.register(leave := Exit())
    words = serve(sys.argv[2], int(sys.argv[3]))
    with leave.known():
        execute(words)
