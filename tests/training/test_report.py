import json
import shutil
from pathlib import Path

import pytest

from metaformer.data.shards.write import write_shards
from metaformer.errors import WeightsError
from metaformer.training.train import train, write_report
from toys import Configure


def test_the_page_shows_curves_images_classes_and_settings(configure: Configure, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("<svg") == 3 and text.count('<img src="data:image/jpeg;base64,') >= 10
    state = json.loads((tmp_path / "run" / "best" / "state.json").read_text())
    assert f"{state['metrics']['top1']:.2%}" in text
    assert "optim" in text and "poolformer_n" in text and "metaformer predict" in text
    assert "cat_max_ratio" not in text and "roi_batch_size" not in text  # of other tasks


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


def test_a_run_without_best_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="best"):
        write_report(tmp_path)
