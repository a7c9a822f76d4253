"""Published against measured accuracy, with a small checkpoint in place of the published one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metaformer.errors import UnknownName, WeightsError
from metaformer.factory import create_model
from metaformer.inference.evaluate import evaluate
from metaformer.inference.verify import Verdict, verify
from metaformer.weights.sources import SOURCES, Source

NAME = "poolformer_n.small"


@pytest.fixture
def data(own_pets: Path) -> Path:
    """An image folder with a `val` split of three classes."""
    return own_pets


@pytest.fixture
def source(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A checkpoint in the cache, with the accuracy that it really has on the data."""
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path / "cache"))
    small = Source(
        model="poolformer_n",
        tag="small",
        url="https://example.invalid/files/small.pth",
        format="timm",
        metrics={"top1": 0.0},
        num_classes=3,
        image_size=(32, 32),
        crop_pct=0.8,
    )
    torch.manual_seed(0)
    file = tmp_path / "cache" / "weights" / small.file
    file.parent.mkdir(parents=True)
    torch.save(create_model("poolformer_n", num_classes=3).state_dict(), file)
    monkeypatch.setitem(SOURCES, NAME, small)
    top1 = 100 * evaluate(NAME, data, workers=0, device="cpu").top1
    small = replace(small, metrics={"top1": round(top1, 1)})
    monkeypatch.setitem(SOURCES, NAME, small)
    return small


def test_measured_equals_published(source: Source, data: Path) -> None:
    (verdict,) = verify(NAME, data, workers=0, device="cpu")
    assert verdict.ok and verdict.measured == pytest.approx(source.metrics["top1"], abs=0.05)
    assert "ok" in verdict.text() and verdict.to_dict()["ok"] is True


def test_a_difference_is_reported(source: Source, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, NAME, replace(source, metrics={"top1": source.metrics["top1"] + 0.4}))
    (verdict,) = verify(NAME, data, workers=0, device="cpu")
    assert not verdict.ok and "differs" in verdict.text() and "-0." in verdict.text()


def test_a_changed_file_is_refused(source: Source, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, NAME, replace(source, sha256="0123abcd"))
    (verdict,) = verify(NAME, data, workers=0, device="cpu")
    assert not verdict.ok and verdict.measured is None and "published is 0123abcd" in verdict.text()


def test_one_failure_does_not_stop_the_others(
    source: Source, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "poolformer_n.other", replace(source, tag="other", sha256="0123abcd"))
    verdicts = {verdict.name: verdict for verdict in verify("poolformer_n.*", data, workers=0, device="cpu")}
    assert verdicts[NAME].ok and not verdicts["poolformer_n.other"].ok


def test_names_that_cannot_be_verified(data: Path) -> None:
    with pytest.raises(UnknownName, match="caformer_s18"):
        next(verify("caformer_s81", data))
    with pytest.raises(UnknownName, match="caformer_s18"):
        next(verify("caformr_s*", data))
    with pytest.raises(WeightsError, match=r"caformer_s18\.sail_in22k"):
        next(verify("caformer_s18.sail_in22k", data))


def test_tolerance() -> None:
    assert Verdict("a", 80.3, 80.33).ok and Verdict("a", 80.3, 80.2).ok
    assert not Verdict("a", 80.3, 80.41).ok and not Verdict("a", None, 80.3).ok
