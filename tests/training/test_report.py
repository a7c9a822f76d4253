import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from metaformer.checkpoint.checkpoint import read_checkpoint, write_checkpoint
from metaformer.config import TrainConfig
from metaformer.data.shards.write import write_shards
from metaformer.errors import WeightsError
from metaformer.training.report import write_report
from metaformer.training.train import train

Configure = Callable[..., TrainConfig]


class Page(HTMLParser):
    """Collect tags, and check that they close in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_curves_images_confusions_and_settings(configure: Configure, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) >= 10 and all(
        source and source.startswith("data:image/jpeg;base64,") for source in images
    )
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text  # nothing from elsewhere
    state = json.loads((tmp_path / "run" / "best" / "state.json").read_text())
    assert f"{state['metrics']['top1']:.2%}" in text
    assert "optim" in text and "poolformer_n" in text and "metaformer predict" in text


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_images_of_shards_are_shown(
    kind: str, configure: Configure, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_shards(pets, tmp_path / "shards", kind=kind, workers=1, progress=False)
    train(configure(schedule={"epochs": 1}, data={"root": str(tmp_path / "shards")}), tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("data:image/jpeg;base64,") >= 10 and f"val/00000.{kind}: " in text
    shutil.rmtree(tmp_path / "shards")
    assert "data:image/jpeg" not in write_report(tmp_path / "run").read_text()


def test_names_of_classes_and_runs_cannot_break_the_page(configure: Configure, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(configure(schedule={"epochs": 1}), run)
    saved = read_checkpoint(run / "best")
    state = {key: value for key, value in saved.state.items() if key != "format"}
    for row in state["evaluation"]["per_class"]:
        row["name"] = "<script>alert(1)</script>"
    tensors = {name: tensor.clone() for name, tensor in saved.tensors("model").items()}
    write_checkpoint(run / "best", {"model": tensors}, state)
    text = write_report(run).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text


def test_many_classes_give_a_list_of_confusions(configure: Configure, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(configure(schedule={"epochs": 1}), run)
    saved = read_checkpoint(run / "best")
    state = {key: value for key, value in saved.state.items() if key != "format"}
    names = [f"class {i}" for i in range(300)]
    row = {"images": 2, "correct": 1, "predicted": 1, "accuracy": 0.5, "precision": 1.0}
    state["evaluation"] |= {"per_class": [{"name": name, **row} for name in names]}
    del state["evaluation"]["confusion"]
    state["evaluation"]["confusion_entries"] = [[i, i, 1] for i in range(300)] + [[7, 9, 5]]
    tensors = {name: tensor.clone() for name, tensor in saved.tensors("model").items()}
    write_checkpoint(run / "best", {"model": tensors}, state)
    text = write_report(run).read_text()
    assert "<td>class 7</td><td>class 9</td><td>5</td>" in text and "270 others do better" in text


def test_a_run_without_best_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="best"):
        write_report(tmp_path)
