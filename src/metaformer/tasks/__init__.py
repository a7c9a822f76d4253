"""The tasks: one folder each, and one `TaskSpec` that the rest of the library asks about it."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from metaformer.tasks.base import TaskSpec

FOLDERS = {
    "classify": "classification",
    "multilabel": "multilabel",
    "segment": "segmentation",
    "detect": "detection",
}
"""Folder of each task, which defines `SPEC` in spec.py."""


class Tasks(Mapping[str, TaskSpec]):
    """The specification of each task by name; its modules are imported when it is asked for."""

    def __getitem__(self, name: str) -> TaskSpec:
        spec: TaskSpec = import_module(f"{__name__}.{FOLDERS[name]}.spec").SPEC
        return spec

    def __iter__(self) -> Iterator[str]:
        return iter(FOLDERS)

    def __len__(self) -> int:
        return len(FOLDERS)


TASKS = Tasks()


def other_task(root: str | Path, name: str) -> TaskSpec | None:
    """The task that a folder's data are more surely for than for the one of this name, if any."""
    certainty = {spec.name: spec.recognize(root) for spec in TASKS.values()}
    best = max(certainty, key=certainty.__getitem__)
    return TASKS[best] if certainty[best] > certainty[name] else None
