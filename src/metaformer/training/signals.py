"""SIGTERM and SIGINT as a wish to stop: the first is noted, a second ends the process at once."""

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes signals while it is entered; `number` is the signal that asked to stop, or 0."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def asked(self) -> bool:
        """Tell whether a signal asked to stop."""
        return self.number != 0

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
