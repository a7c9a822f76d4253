"""Fault injection into training runs: `make faults` prints a table of what they survived."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from faults.case import TASKS, Case
from faults.run import Run, Tally, torchrun

HERE = Path(__file__).parent
RECORD = "fault"
DOOR = "door"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="faults: the full suite, not its short form")
    help = "faults: how long each door is tried, by default 2 in the short form and 10 in the full suite"
    parser.addoption("--door-seconds", type=float, help=help)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "often(short, full): number of attempts")
    config.addinivalue_line("markers", "every_task(short, full): the same for tasks after the first")
    config.addinivalue_line("markers", "epochs(short, full): length of its runs, if not 4 epochs of 4 steps")
    config.addinivalue_line("markers", "waits: mostly waits, so that it can run beside others")
    config.pluginmanager.register(Table(), "fault-table")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "attempt" in metafunc.fixturenames:
        metafunc.parametrize("attempt", range(max(_attempts(metafunc.definition), 1)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)
    config.hook.pytest_deselected(items=[item for item in items if not _wanted(item)])
    items[:] = [item for item in items if _wanted(item)]
    if config.getoption("full", default=False):  # long waits start first, beside tests that compute
        items.sort(key=lambda item: item.get_closest_marker("waits") is None)


def _wanted(item: pytest.Item) -> bool:
    """The first task runs all tests: the engine is the same for the others, which repeat some."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if HERE not in item.path.parents or parameters.get("case") in (None, next(iter(TASKS.values()))):
        return _attempts(item) > 0
    marker = item.get_closest_marker("every_task")
    if marker is None or not _attempts(item):
        return False
    short, whole = marker.args
    most = whole if item.config.getoption("full", default=False) else short
    return bool(parameters.get("attempt", 0) < most)


def _attempts(item: pytest.Item) -> int:
    """Number of attempts at a test; 0 leaves it to the full suite."""
    marker = item.get_closest_marker("often")
    if marker is None:
        return 1
    short, whole = marker.args
    attempts: int = whole if item.config.getoption("full", default=False) else short
    return attempts


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the full suite, not its short form."""
    return bool(request.config.getoption("full", default=False))


@pytest.fixture(scope="session")
def door_seconds(request: pytest.FixtureRequest, full: bool) -> float:
    """How long each door is tried."""
    return float(request.config.getoption("door_seconds", default=None) or (10 if full else 2))


@pytest.fixture(scope="session")
def often(full: bool) -> Callable[[int, int], int]:
    """Number of attempts: `often(short, full)`."""
    return lambda short, whole: whole if full else short


@pytest.fixture(scope="session", params=TASKS.values(), ids=TASKS)
def case(request: pytest.FixtureRequest) -> Case:
    """Each task in turn."""
    chosen: Case = request.param
    return chosen


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder shared by all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def data(case: Case, shared: Path) -> Path:
    """The task's data set."""
    folder = shared / case.task
    with FileLock(shared / f"{case.task}.lock"):
        if not folder.exists():
            case.write(folder)
    return folder


@pytest.fixture
def epochs(request: pytest.FixtureRequest, often: Callable[[int, int], int]) -> int:
    """Length of the test's runs in epochs."""
    marker = request.node.get_closest_marker("epochs")
    return 4 if marker is None else often(*marker.args)


@pytest.fixture
def reference_run(case: Case, data: Path, shared: Path, epochs: int) -> Callable[..., Run]:
    """Runs without faults, each trained by the first test that needs it.

    The first task's is of a process that is no fork, and equals what forks resume.
    """

    def make(name: str, launcher: tuple[str, ...] = (), **sections: Any) -> Run:
        run = Run(case, data, shared / f"{case.task}-{name}-{epochs}", epochs, **sections)
        with FileLock(f"{run.folder}.lock"):
            if not run.path.exists():
                run.finish(launcher=launcher, fork=bool(launcher) or case.task != next(iter(TASKS)))
        return run

    return make


@pytest.fixture
def reference(reference_run: Callable[..., Run]) -> Run:
    """A run without faults; not to be changed."""
    return reference_run("reference")


@pytest.fixture
def reference_ddp(reference_run: Callable[..., Run]) -> Run:
    """A run of two ranks without faults; not to be changed."""
    return reference_run("reference_ddp", torchrun())


@pytest.fixture
def new_run(case: Case, data: Path, tmp_path: Path, epochs: int) -> Iterator[Callable[..., Run]]:
    """Start new runs; their processes are killed after the test."""
    runs: list[Run] = []

    def make(name: str = "it", **sections: Any) -> Run:
        runs.append(Run(case, data, tmp_path / name, epochs, **sections))
        return runs[-1]

    yield make
    for run in runs:
        run.clean_up()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Count one attempt for the table and assert that it was survived; see `run.Tally`."""
    node = request.node

    def count(item: str, what: str, survived: object, details: object = "") -> None:
        node.user_properties.append((RECORD, [str(item), what, bool(survived)]))
        assert survived, f"{what}: {details}"

    return count


class Table:
    """Sums the tallies of all tests, also of xdist's processes, and prints them."""

    def __init__(self) -> None:
        self.tried: Counter[tuple[str, str]] = Counter()
        self.survived: Counter[tuple[str, str]] = Counter()
        self.doors: list[tuple[Any, ...]] = []
        """Name, tries, errors of ours, accepted files, other ends, longest time and largest memory."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":  # each phase reports the properties again
            return
        for name, value in report.user_properties:
            if name == DOOR:
                self.doors.append(tuple(value))
            if name == RECORD:
                item, what, survived = value
                self.tried[item, what] += 1
                self.survived[item, what] += survived

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.tried:
            return
        write = terminalreporter.write_line
        terminalreporter.section("faults: attempts, and how many were survived")
        width = max(len(what) for _, what in self.tried)
        write(f"{'item':>4}  {'what':<{width}}  {'tries':>5}  {'survived':>8}")
        for item, what in sorted(self.tried, key=_order):
            tried, survived = self.tried[item, what], self.survived[item, what]
            mark = "" if tried == survived else "  <-- NOT ALL"
            write(f"{item:>4}  {what:<{width}}  {tried:>5}  {survived:>8}{mark}")
        write(f"{'':>4}  {'together':<{width}}  {self.tried.total():>5}  {self.survived.total():>8}")
        if self.doors:
            self._write_doors(terminalreporter)

    def _write_doors(self, terminalreporter: pytest.TerminalReporter) -> None:
        write = terminalreporter.write_line
        terminalreporter.section("doors: changed files, and how reading them ended")
        sums = [sum(door[place] for door in self.doors) for place in range(1, 5)]
        most = [max(door[place] for door in self.doors) for place in (5, 6)]
        width = max(len(name) for name, *_ in self.doors)
        write(f"{'':<{width}}  {'tries':>6}  {'ours':>6}  {'read':>6}  {'other':>5}  longest  memory")
        for name, tries, ours, read, others, seconds, size in [
            *sorted(self.doors),
            ("together", *sums, *most),
        ]:
            counts = f"{tries:>6}  {ours:>6}  {read:>6}  {others:>5}"
            write(f"{name:<{width}}  {counts}  {seconds:>5.2f} s  {size:>3.0f} MB")


def _order(key: tuple[str, str]) -> tuple[int, str, str]:
    item, what = key
    digits = "".join(letter for letter in item if letter.isdigit())
    return int(digits or 999), item, what
