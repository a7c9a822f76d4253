"""Errors on the page of a run, with the maps of what the network looked at."""

import sys
from pathlib import Path

import pytest

from metaformer.tasks import TASKS
from metaformer.tasks.explain import NOTE
from metaformer.training.report import write_report
from metaformer.training.train import train
from toys import Configure

VERBS = ("says ", "is ", "wrongly ", "missed ")
"""How captions of maps begin."""


def maps(text: str) -> int:
    return sum(text.count(f'alt="{verb}') for verb in VERBS)


@pytest.mark.parametrize("task", TASKS)
def test_errors_of_every_task_have_their_maps(
    task: str, configure_task: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(configure_task(task, schedule={"steps": 1, "epochs": 1}), tmp_path / "run").run
    text = (run / "report.html").read_text()
    assert maps(text) >= 1 and text.count(NOTE) == 1
    plain = write_report(run, explain=False).read_text()
    assert not maps(plain) and NOTE not in plain
    pictures, others = (page.count('<img src="data:image/jpeg;base64,') for page in (text, plain))
    assert pictures == others + maps(text), "each error is there once"
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    text = write_report(run).read_text()
    assert not maps(text) and text.count("needs captum: pip install &#39;metaformer[explain]&#39;") == 1


def test_a_run_without_an_error_has_no_maps(detect_run: Path) -> None:
    text = (detect_run / "report.html").read_text()
    assert not maps(text) and NOTE not in text
