"""Processes forked from a server that has imported the library: importing is most of a short run's time."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PRELOAD = [
    *("metaformer.training.train", "metaformer.cli.train", "timm.data", "torch.utils.tensorboard"),
    *("jsonargparse", "docstring_parser", "jinja2"),
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class ForkedProcess:
    """The part of `subprocess.Popen` that `Process` needs, for a command of `inject.py`."""

    def __init__(self, args: Sequence[str], environment: dict[str, str], output: Path) -> None:
        here = str(Path(__file__).parent)
        if here not in sys.path:  # the child process inherits it
            sys.path.insert(0, here)
        self._process = _context.Process(target=_run, args=(list(args), environment, str(output)))
        self._process.start()
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status.

        Raises:
            TimeoutError: it takes longer.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError
        return self._process.exitcode


def _run(args: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # else its data workers would import everything again
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import inject

    sys.exit(inject.run(args))
