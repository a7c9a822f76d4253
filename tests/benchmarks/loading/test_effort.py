"""Processor time of this process and its children."""

import multiprocessing
import multiprocessing.connection
import time

from benchmarks.loading.effort import core_seconds


def _work(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def _serve(pipe: "multiprocessing.connection.Connection") -> None:
    _work(time.process_time() + 0.3)
    pipe.send("done")
    pipe.recv()


def test_children_count_and_sleep_does_not() -> None:
    here, there = multiprocessing.Pipe()
    before = core_seconds()
    child = multiprocessing.Process(target=_serve, args=(there,))
    child.start()
    assert here.recv() == "done"
    time.sleep(0.2)
    after = core_seconds()
    here.send("end")
    child.join()
    assert before is not None and after is not None
    assert 0.25 < after - before < 1.5
