"""What is said about figures."""

import json
from dataclasses import replace

import pytest

from benchmarks.loading.report import LoadingReport, Measured
from benchmarks.loading.settings import LoadingConfig
from metaformer.bench.timing import Machine, Timing
from metaformer.process import cores

LOADERS = {
    "ours": Measured(Timing((1.0, 2.0, 1.0), 100), (0.5, 0.4, 0.3)),
    "timm": Measured(Timing((2.0, 2.0, 3.0), 100)),
    "torchvision": Measured(failure="OSError: no such thing"),
}
CONFIG = LoadingConfig(workers=1, model_speed=30.0)
REPORT = LoadingReport({"train": LOADERS}, 30.0, CONFIG, Machine("cpu: some", 2, "2", "3", "plain"))


def test_page() -> None:
    text = REPORT.text()
    row = next(line for line in text.splitlines() if line.startswith("timm")).split()
    assert row[:6] == ["timm", "50", "50", "-", "2.00", "2.00"], "quickest rounds 2 : 1, pairs 2, 1 and 3"
    own = next(line for line in text.splitlines() if line.startswith("ours")).split()
    assert own == ["ours", "100", "100", "4.00"]
    assert "torchvision: OSError: no such thing" in text
    assert "not the bottleneck; 1 of 1 workers would do" in text


def test_a_loader_that_holds_training_up() -> None:
    told = replace(REPORT, model_speed=750.0).verdict()
    assert "750 images/s" in told and "makes 100" in told
    assert "IS the bottleneck; about 8 workers" in told


@pytest.mark.parametrize("workers", [0, 1])
def test_the_cores_are_shared_with_a_model_on_the_cpu(workers: int) -> None:
    config = LoadingConfig(workers=workers)
    share = 100 * (1 / 100) / (1 / 100 + cores() / 25)
    told = replace(REPORT, config=config, model_speed=25.0).verdict()
    assert f"take {share:.1f} % of the time" in told and "poolformer_s12 trains on 25" in told
    cuda = replace(REPORT.machine, device="cuda: some")
    assert "%" not in replace(REPORT, config=config, machine=cuda).verdict()


def test_json() -> None:
    values = json.loads(json.dumps(REPORT.to_dict()))
    assert values["pipelines"]["train"]["timm"]["ours_by_it"] == {
        "best": 2.0,
        "median": 2.0,
        "pairs": [2.0, 1.0, 3.0],
    }
    assert values["pipelines"]["train"]["torchvision"] == {"failure": "OSError: no such thing"}
    assert values["settings"]["pipelines"] == ["train", "plain", "evaluation"]
    assert "bottleneck" in values["verdict"]


def test_without_training_there_is_no_verdict() -> None:
    report = replace(REPORT, loaders={"evaluation": LOADERS})
    assert "bottleneck" not in report.text() and report.to_dict()["verdict"] is None
