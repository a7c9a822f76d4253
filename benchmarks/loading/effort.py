"""What making images costs in processor time, which a busy machine changes less than speed."""

import multiprocessing
import os
import time
from pathlib import Path


def core_seconds() -> float | None:
    """Processor time of this process and of the workers that are alive; None where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return None
    ticks = sum(_ticks(child.pid) for child in multiprocessing.active_children() if child.pid)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    """User and system time of a process: fields 14 and 15 of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    return int(fields[11]) + int(fields[12])
