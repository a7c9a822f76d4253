"""Reports of studies, on simulated ones."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from metaformer.errors import DataError
from metaformer.serialize import to_dict
from metaformer.study.analysis import analyze
from metaformer.study.report import write_report
from metaformer.study.sections.findings import hypothesis_outcome, verdict_sentence
from metaformer.study.study_dir import read_study
from study.simulate import ACCURACIES, write_study

FILES = ("report.html", "report.md", "results.csv", "runs.csv")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of eleven networks, with its report."""
    root = write_study(tmp_path_factory.mktemp("studies") / "mixers")
    assert write_report(root) == root / "report.html"
    return root


def table(file: Path) -> dict[str, dict[str, str]]:
    """Rows of a CSV file by their first column."""
    with file.open(newline="", encoding="utf-8") as stream:
        return {next(iter(row.values())): row for row in csv.DictReader(stream)}


def test_a_report_is_rebuilt_byte_for_byte(study: Path, tmp_path: Path) -> None:
    """Twice, and in another place."""
    before = {name: (study / name).read_bytes() for name in FILES}
    write_report(study)
    copy = shutil.copytree(study, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(*FILES))
    write_report(copy)
    for name in FILES:
        assert (study / name).read_bytes() == (copy / name).read_bytes() == before[name]


def test_verdicts_are_those_of_the_comparisons(study: Path) -> None:
    analysis, text = analyze(read_study(study)), (study / "report.md").read_text()
    rows = table(study / "results.csv")
    assert rows.keys() == ACCURACIES.keys()
    for name, comparison in analysis.comparisons.items():
        sentence = verdict_sentence(analysis, name)
        word = {"equivalent": "are equivalent within", "unresolved": "is unresolved"}.get(
            comparison.verdict, f"is {comparison.verdict} than pooling"
        )
        assert word in sentence and rows[name]["verdict"] == comparison.verdict
        assert float(rows[name]["difference"]) == pytest.approx(comparison.difference.value)
        assert sentence.split(":")[0] in text.replace("\\", "")
    assert rows["control-identity"]["verdict"] == "worse" and rows["pooling"]["verdict"] == ""
    assert (
        "no difference" not in text.lower()
        and "no difference" not in (study / "report.html").read_text().lower()
    )


def test_hypotheses_are_held_against_verdicts(study: Path) -> None:
    analysis, text = analyze(read_study(study)), (study / "report.md").read_text()
    rows = table(study / "results.csv")
    for name, expected in analysis.study.plan.hypotheses.items():
        verdict, outcome = rows[name]["verdict"], hypothesis_outcome(analysis, name)
        assert rows[name]["hypothesis"] == expected
        assert (outcome == "confirmed") == (verdict == expected)
        assert (outcome == "unresolved") == (verdict == "unresolved")
        assert re.search(rf"\| {name} is {expected} (than|to) pooling \| {outcome} \|", text)
    assert rows["cycle"]["hypothesis"] == ""


def test_accuracies_are_those_of_the_predictions(study: Path) -> None:
    found, labels = read_study(study), read_study(study).test_set.labels
    rows, runs = table(study / "results.csv"), table(study / "runs.csv")
    tests = [
        float(run["test"])
        for run in runs.values()
        if run["network"] == "attention" and run["role"] == "final"
    ]
    exact = [
        100 * (found.predictions(f"final-attention-seed{s}").predicted == labels).mean() for s in range(5)
    ]
    assert tests == pytest.approx(exact)
    assert float(rows["attention"]["accuracy"]) == pytest.approx(sum(exact) / 5)


def test_failed_runs_edges_and_controls_are_said(study: Path) -> None:
    text = (study / "report.md").read_text().replace("\\", "")
    assert (
        "| [final-sepconv-seed3](runs/final-sepconv-seed3/) | sepconv | final | 0.002 | 3 | step 120" in text
    )
    assert "which ones may depend on the network: final-sepconv-seed3." in text
    assert re.search(r"a better one may lie beyond: .*cycle", text)
    assert re.search(r"\| control-repeat \| the baseline with other seeds .* \| (holds|fails) \|", text)
    assert re.search(r"\| control-shuffled_labels \| .* \| (at|above|below) chance \|", text)
    assert "4 seeds: it takes 5 to explore and 10 to confirm" in text
    found = read_study(study)
    assert found.plan_sha256 in text and found.plan.exclusions in text
    assert len(table(study / "runs.csv")) == len(found.runs)


def test_the_page_is_whole_escaped_and_needs_nothing_else(study: Path) -> None:
    page = (study / "report.html").read_text()
    for title in (
        "Findings", "Costs", "Learning rates", "Classes", "Effective receptive fields", "Robustness",
        "Diagnostic tasks", "Transfer", "Controls", "What this study can find",
        "Threats to validity", "Runs", "Plan",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in page, title
    assert "&lt;nan&gt;" in page and "<nan>" not in page and "<more>" not in page and "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|runs/)', page)
    assert "nan" not in re.sub(r"base64,[^\"]*|&lt;nan&gt;", "", page) and " inf" not in page


def test_a_study_has_a_report_from_its_first_run_on(tmp_path: Path) -> None:
    root = write_study(tmp_path / "early", seeds=2, images=60, groups=6)
    for folder in root.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    page = write_report(root).read_text()
    assert "for want of two seeds" in page and "nothing yet" in page
    whole = write_study(tmp_path / "whole", seeds=2, images=60, groups=6)
    write_report(whole)
    for row in table(whole / "results.csv").values():  # two seeds say little, but not 110 %
        assert 0 <= float(row["accuracy_low"]) <= float(row["accuracy_high"]) <= 100
    shutil.copytree(whole / "predictions", root / "predictions")
    (root / "results").mkdir()
    for name in ("final-pooling-seed0", "final-pooling-seed1", "final-dwconv-seed0", "final-dwconv-seed1"):
        shutil.copy(whole / "results" / f"{name}.json", root / "results")
    text = write_report(root).parent.joinpath("report.md").read_text()
    assert "dwconv against pooling is" in text and "attention is better than pooling | not compared" in text
    assert not re.search("attention (against|and) pooling|attention is (better|worse) than pooling:", text)


def test_predictions_that_are_missing_are_an_error_of_one_line(study: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study, tmp_path / "study")
    (copy / "predictions" / "final-pooling-seed0.safetensors").unlink()
    with pytest.raises(DataError, match=r"final-pooling-seed0\.safetensors"):
        write_report(copy)


def test_results_hold_no_other_numbers_than_the_analysis(study: Path) -> None:
    """Costs and rates of the table are those of the arms."""
    rows = table(study / "results.csv")
    for arm in read_study(study).arms:
        assert int(rows[arm.name]["parameters"]) == arm.parameters
        assert rows[arm.name]["learning_rate"] == (
            "" if arm.learning_rate is None else f"{arm.learning_rate:.8g}"
        )
        assert json.loads(rows[arm.name]["macs"] or "0") == (arm.costs[0].macs if arm.costs else 0)
        assert to_dict(arm)["control"] == (rows[arm.name]["control"] or None)
