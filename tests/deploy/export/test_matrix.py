"""Every model, mixer and dense network as a file: `python -m benchmarks.export_matrix` prints the table."""

import json
from pathlib import Path

import pytest

from benchmarks import export_matrix
from benchmarks.export_matrix import FORMATS, Case, Row, cases, measure, problem, read_record, record, table
from metaformer.errors import OptimizeError

ROWS = (
    Row("poolformer_s12", "ONNX", 21.4, probabilities=3e-7, decisions=1.0),
    Row("mask_rcnn poolformer_s12", "OpenVINO", 60.2, decisions=1.0, boxes=2e-5, scores=1e-6, masks=2e-6),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name.replace(" ", "-"))
def test_every_network_as_every_file(case: Case, tmp_path: Path) -> None:
    rows = list(measure(case, tmp_path))
    print(table(rows))
    assert [row.format for row in rows] == list(FORMATS.values())
    assert not any(map(problem, rows))


def test_differences_are_found() -> None:
    assert not any(map(problem, ROWS))
    assert "probabilities" in problem(Row("a", "ONNX", 1.0, probabilities=2e-4, decisions=1.0))
    assert "99.900%" in problem(Row("a", "ONNX", 1.0, probabilities=0.0, decisions=0.999))


def test_a_record_keeps_networks_that_were_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "exports.json"
    record(ROWS, file)
    record([Row("poolformer_s12", "ONNX", 9.0, probabilities=0.0, decisions=1.0)], file)
    about, rows = read_record(file)
    assert [(row.network, row.seconds) for row in rows] == [(ROWS[0].network, 9.0), (ROWS[1].network, 60.2)]
    file.write_text(json.dumps({**json.loads(file.read_text()), "with": {**about, "torch": "1.0"}}))
    record(ROWS[1:], file)  # other programs may give other figures
    assert read_record(file) == (about, [ROWS[1]])


def test_what_cannot_be_exported_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(case: Case, folder: Path) -> None:
        raise OptimizeError(f"{case.name} has no ONNX form")

    monkeypatch.setattr(export_matrix, "measure", refuse)
    assert export_matrix.main(["--networks", "poolformer_s1*", "--record", str(tmp_path / "new.json")]) == 1
    out = capsys.readouterr().out
    assert "2 files, 2 that are not as their network" in out
    assert out.count("poolformer_s12 has no ONNX form") == 4  # in the table, and below
    assert all(row.failure for row in read_record(tmp_path / "new.json")[1])
    assert export_matrix.main(["--networks", "resnet*"]) == 1
    assert "resnet*" in capsys.readouterr().err
