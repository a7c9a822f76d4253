"""The worst mistakes on the page of a run, with the maps of what the network looked at."""

import sys
from pathlib import Path

import pytest

from metaformer.training.report import write_report
from metaformer.training.train import train
from toys import Configure

TITLE = "Worst mistakes, and what the network looked at"


@pytest.mark.parametrize("task", ["classify", "multilabel", "segment", "detect"])
def test_mistakes_of_every_task_have_their_maps(
    task: str, configure_task: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(configure_task(task, schedule={"steps": 1, "epochs": 1}), tmp_path / "run").run
    text = (run / "report.html").read_text()
    section = text[text.index(TITLE) :].partition("</section>")[0]
    pictures = section.count('<img src="data:image/jpeg;base64,')
    assert pictures > section.count('alt="image"') >= 1, "each image has a map beside it"
    plain = write_report(run, explain=False).read_text()
    assert TITLE not in plain and len(plain) < len(text)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    text = write_report(run).read_text()
    section = text[text.index(TITLE) :].partition("</section>")[0]
    assert "needs captum: pip install &#39;metaformer[explain]&#39;" in section and "<img" not in section


def test_a_run_without_a_mistake_has_no_such_part(detect_run: Path) -> None:
    assert TITLE not in (detect_run / "report.html").read_text()
