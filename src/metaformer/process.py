"""This process: its memory, its threads and the signals that stop it; for programs to call, not libraries."""

import codecs
import ctypes
import gc
import io
import json
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NoReturn, Self

# Parameter numbers in glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
ASCII: Final = {"×": "x", "…": "...", "–": "-", "—": "-", "−": "-", "≤": "<=", "≥": ">=", "→": "->", "·": "."}
"""Signs of our texts, and what is printed where the encoding has none of them."""
_CONTAINER: Final = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Folder, limit, usage and prefix of statistics of a container's memory, in version 2 and 1 of cgroups."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE: Final = 8.0
"""Seconds that an operation may still take after a signal; what must be saved then is in ten."""


def keep_freed_memory(largest: int = 1 << 30) -> bool:
    """Serve blocks of up to `largest` bytes from a heap that is not given back, where the C library can.

    Activations of a step are freed and asked for again at the next. By default glibc returns each large block
    to the system and gets zeroed pages for the next one. Other C libraries are left as they are, and False is
    returned.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, largest) and mallopt(M_TRIM_THRESHOLD, largest))


def sleep_rather_than_spin() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the environment says otherwise.

    Threads that spin on a core that another process wants can slow a training step down twentyfold. This only
    takes effect before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def print_anywhere(signs: bool = True) -> None:
    """Let standard output and error print every text, whatever the terminal's encoding.

    What it lacks is written in ASCII: signs that our own texts use by their likes, others as JSON escapes
    them. So are surrogates, which stand for bytes of file names that are no UTF-8.

    Args:
        signs: False for JSON, in which signs are escaped like all others.
    """
    likes = ASCII if signs else {}

    def in_ascii(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        lacking = error.object[error.start : error.end]
        return "".join(likes.get(char) or json.dumps(char)[1:-1] for char in lacking), error.end

    codecs.register_error("metaformer", in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="metaformer")


def encoding_remedy(text: str) -> str:
    """What to add to an error that quotes names of files, where the locale cannot hold them; else empty."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8" or text.isascii() or "PYTHONUTF8" in text:
        return ""
    return f"; by the locale, names of files are {encoding}: set PYTHONUTF8=1"


def printable(text: str) -> str:
    """A text of several lines, in which control characters are escaped as in JSON: a terminal obeys them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", _escape, text)


def one_line(text: str) -> str:
    """The same for a text of one line, such as a name."""
    return re.sub(r"[\t\n\u2028\u2029]", _escape, printable(text))


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1] if found[0] != "\x7f" else "\\u007f"


@contextmanager
def paused_gc() -> Iterator[None]:
    """Pause the garbage collector, which would visit millions of objects that all stay, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this process may have: the machine's, or less by its own limit (`ulimit -v`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole if limit == resource.RLIM_INFINITY else min(whole, limit)


def available_memory() -> int:
    """Bytes of memory that are free for this process: of the machine, of its container, and of `memory()`."""
    found = [memory()]
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    for folder, limit, used, prefix in _CONTAINER:
        with suppress(OSError, ValueError):  # "max" where there is no limit
            most, taken = (int((Path(folder) / name).read_text()) for name in (limit, used))
            rows = (line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines())
            files = {f"{prefix}active_file", f"{prefix}inactive_file"}  # caches, given back when needed
            found.append(most - taken + sum(int(size) for name, size in rows if name in files))
    return max(0, min(found))


def open_files_limit(needed: int = 0) -> tuple[int, int]:
    """How many files this process may open, and how many of these are left.

    Args:
        needed: raise the limit so that these are left, as far as the system lets this process do it.
    """
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/dev/fd")) - 1  # its own
    except (ImportError, OSError):  # no such limit, or no way to count
        return sys.maxsize, sys.maxsize
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and used + needed > soft and (hard == unlimited or hard > soft):
        raised = used + needed if hard == unlimited else min(used + needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    limit = sys.maxsize if soft == unlimited else soft
    return limit, max(limit - used, 0)


class StopSignals:
    """Context that records SIGTERM and SIGINT as a request to stop; a second one ends the process at once.

    Python runs handlers of signals between its own instructions, and an operation of PyTorch may last
    minutes. So a thread learns of each signal, too: it ends the process at the second one, and where the
    first has not led to the end of the context within GRACE seconds. `protected` holds that off.

    `number` is the signal that was received, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handled = 0
        self._before_exit: Callable[[], object] | None = None
        self._exit_lock = threading.Lock()
        """Held while the process must not be ended for being slow, and by the thread that ends it."""
        self._over = False
        self._previous: dict[int, object] = {}
        self._thread: threading.Thread | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows handlers only there
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _wakeup_fds.add(self._writer)
        self._thread = threading.Thread(target=self._watch, args=(reader,), name="stop signals", daemon=True)
        self._thread.start()
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        with self._exit_lock:
            self._over = True
        signal.set_wakeup_fd(self._previous_fd)
        _wakeup_fds.discard(self._writer)
        os.close(self._writer)
        self._thread.join()

    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.number != 0

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Context in which the first signal does not end the process, however long it takes."""
        with self._exit_lock:
            yield

    @contextmanager
    def interruptible(self, before_exit: Callable[[], object] | None = None) -> Iterator[None]:
        """Part of a `protected` context in which it does.

        Args:
            before_exit: called first, in another thread, while this context's code is still running.
        """
        self._before_exit = before_exit
        self._exit_lock.release()
        try:
            yield
        finally:
            self._exit_lock.acquire()
            self._before_exit = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled += 1
        if self._handled > 1:
            _exit(128 + number)
        self.number = self.number or number

    def _watch(self, reader: int) -> None:
        """Read the numbers of the signals, which C code writes at once, until the context is left."""
        count = 0
        with open(reader, "rb", buffering=0) as numbers:
            while received := numbers.read(64):
                for number in received:
                    count += number in STOP_SIGNALS
                    if count > 1:
                        _exit(128 + number)
                    if count and not self.number:
                        self.number = number
                if count and self._timer is None:
                    self._timer = threading.Timer(GRACE, self._exit_when_allowed)
                    self._timer.daemon = True
                    self._timer.start()

    def _exit_when_allowed(self) -> None:
        with self._exit_lock:
            if self._over:
                return
            status = self.exit_status
            try:
                if self._before_exit is not None:
                    self._before_exit()
            except Exception as error:  # the process must end whatever it is
                print(f"metaformer: error: {error}", file=sys.stderr, flush=True)
                status = 1
            _exit(status)


class StepLimit:
    """Context that ends the process, with one line, where a step takes longer than it may.

    It does so from a thread, so that neither a loop of Python's nor an operation of PyTorch is waited for.

    Args:
        seconds: for each step.
        message: what is said of a step.
    """

    def __init__(self, seconds: float, message: Callable[[str], str]) -> None:
        self.seconds, self.message = seconds, message
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._cancel()

    def begin(self, step: str) -> None:
        """The step before is done, and this one begins."""
        self._cancel()
        self._timer = threading.Timer(self.seconds, self._end, [step])
        self._timer.daemon = True
        self._timer.start()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, step: str) -> None:
        print(f"metaformer: error: {one_line(self.message(step))}", file=sys.stderr, flush=True)
        _exit(1)


_wakeup_fds: set[int] = set()
"""Descriptors that C code writes the numbers of signals to, while a `StopSignals` is entered."""


def _forget_wakeup_fd() -> None:
    """In a forked child: its signals are not its parent's."""
    with suppress(ValueError):
        other = signal.set_wakeup_fd(-1)
        if other not in _wakeup_fds:
            signal.set_wakeup_fd(other)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup_fd)


def _exit(status: int) -> NoReturn:
    """End the process and its data workers now, without waiting for anything that runs."""
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            if child.daemon:
                child.kill()
    os._exit(status)
