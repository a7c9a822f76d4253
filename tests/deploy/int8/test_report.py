import json
from pathlib import Path

from metaformer.deploy.int8.report import QuantizeReport, Side

REPORT = QuantizeReport(
    name="poolformer_n",
    directory="out",
    calibrated=300,
    images=355,
    float32=Side(0.98028, 0.17703, 8_280_000),
    int8=Side(0.9775, 0.1857, 2_490_000),
    agreement=0.9972,
    mean_difference=0.07,
    largest_difference=0.802,
    largest_logit=5.942,
    products=30,
    float_products=tuple(f"stages.0.blocks.{i}.token_mixer" for i in range(8)),
    rest="bfloat16",
)


def test_text() -> None:
    lines = REPORT.text().splitlines()
    assert lines[1].split() == ["top-1", "98.03%", "97.75%"]
    assert lines[2].split() == ["loss", "0.1770", "0.1857"]
    assert lines[3].split() == ["megabytes", "8.28", "2.49"]
    assert "99.72% of 355 images" in REPORT.text()
    products = next(line for line in lines if line.startswith("int8 "))
    assert "22 of 30 products; not stages.0.blocks.0.token_mixer, " in products
    assert products.endswith("stages.0.blocks.5.token_mixer and 2 more (all in the JSON)")


def test_json(tmp_path: Path) -> None:
    values = json.loads(REPORT.save(tmp_path / "report.json").read_text())
    assert values["int8"] == {"top1": 0.9775, "loss": 0.1857, "bytes": 2_490_000}
    assert len(values["float_products"]) == 8
