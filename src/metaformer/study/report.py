"""Report of a study: report.html, report.md, results.csv and runs.csv, rebuilt from its directory alone."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from metaformer.report.blocks import Section
from metaformer.report.markdown import to_markdown
from metaformer.report.page import Tile, render_gallery
from metaformer.storage import check_writable, write_text
from metaformer.study.analysis import SHUFFLED, Analysis, analyze
from metaformer.study.results import Arm
from metaformer.study.sections import findings, measurements, validity
from metaformer.study.study_dir import read_study

SECTIONS: Final[tuple[Callable[[Analysis], Section], ...]] = (
    findings.findings,
    measurements.costs,
    measurements.learning_rates,
    findings.classes,
    measurements.receptive_fields,
    measurements.robustness,
    measurements.diagnostics,
    measurements.transfer,
    validity.controls,
    validity.power,
    validity.threats,
    validity.runs,
    validity.plan,
)
"""In the order of the page; those without blocks are left out."""
_RESULTS: Final = (
    "network", "control", "mixers", "relative_cost", "parameters", "image_size", "macs", "latency_1_ms",
    "latency_8_ms", "inference_memory_bytes", "training_memory_bytes", "learning_rate", "seeds", "accuracy",
    "accuracy_low", "accuracy_high", "difference", "difference_low", "difference_high", "wins", "wins_low",
    "wins_high", "p_holm", "p_equivalent_holm", "verdict", "hypothesis", "smallest_detectable",
    "seeds_for_smallest_effect",
)  # fmt: skip
_RUNS: Final = (
    "run", "network", "role", "learning_rate", "seed", "validation", "test", "error", "directory",
)  # fmt: skip


def write_report(study_dir: str | Path) -> Path:
    """Write the report of a study, however far it has come; equal directories give equal bytes.

    Args:
        study_dir: the study.

    Returns:
        The page, report.html; report.md, results.csv and runs.csv are beside it.

    Raises:
        DataError: the directory holds no study, or a file is damaged.
        ConfigError: its plan cannot be read any more, or its test images are one cluster.
        OutputError: the directory cannot be written.
        MissingPackage: scipy is not there.
    """
    folder = Path(study_dir)
    analysis = analyze(read_study(folder))
    study, head = analysis.study, tiles(analysis)
    sections = [section(analysis) for section in SECTIONS]
    skeleton = f"{study.plan.skeleton.model}, recipe {study.plan.recipe}, data {study.plan.data.root}"
    subtitle = f"{skeleton}; baseline {study.plan.baseline}; plan {study.plan_sha256[:12]}"
    footer = f"Rebuilt from this directory by metaformer {study.versions.get('metaformer', '')}".rstrip()
    page = folder / "report.html"
    check_writable(page)
    write_text(page, render_gallery(study.plan.question, subtitle, sections, footer, head))
    write_text(folder / "report.md", to_markdown(study.plan.question, subtitle, sections, footer, head))
    write_text(folder / "results.csv", _csv(_RESULTS, (_result(analysis, arm) for arm in study.arms)))
    write_text(folder / "runs.csv", _csv(_RUNS, _runs(analysis)))
    return page


def tiles(analysis: Analysis) -> list[Tile]:
    """The numbers at the top."""
    study, clusters = analysis.study, len(set(analysis.study.test_set.clusters.tolist()))
    compared = [arm.name for arm in study.arms if arm.control != SHUFFLED]
    seeds = [len(analysis.correct.get(name, ())) for name in compared]
    images = len(study.test_set.images)
    found = [
        (str(len(study.plan.mixers)), "mixers"),
        (" to ".join(map(str, sorted({min(seeds), max(seeds)}))), "seeds each"),
        (f"{images:,}", "test images" + (f" in {clusters:,} groups" if clusters < images else "")),
        (f"±{study.plan.smallest_effect:g}", "points, smallest effect of interest"),
    ]
    failed = sum(run.error is not None for run in study.runs)
    return [*found, (f"{failed} of {len(study.runs)}", "runs failed or excluded")]


def _result(analysis: Analysis, arm: Arm) -> list[object]:
    """A line of results.csv; what is not known is empty."""
    cost, accuracy = analysis.cost(arm), analysis.accuracy.get(arm.name)
    row: list[object] = [arm.name, arm.control, " ".join(arm.mixers), arm.relative_cost, arm.parameters]
    names = ("image_size", "macs", "latency_1", "latency_8", "inference_memory", "training_memory")
    row += [getattr(cost, name, None) for name in names]
    row += [arm.learning_rate, len(analysis.correct.get(arm.name, ()))]
    row += [getattr(accuracy, name, None) for name in ("value", "low", "high")]
    comparison, reach = analysis.comparison(arm), analysis.reach.get(arm.name)
    difference = comparison and comparison.difference
    row += [getattr(difference, name, None) for name in ("value", "low", "high")]
    names = ("wins", "wins_low", "wins_high", "p", "p_equivalent", "verdict")
    row += [getattr(comparison, name, None) for name in names]
    row.append(analysis.study.plan.hypotheses.get(arm.name))
    return row + [getattr(reach, name, None) for name in ("smallest", "seeds")]


def _runs(analysis: Analysis) -> Iterable[list[object]]:
    for run in analysis.study.runs:
        values = [
            run.name,
            run.arm,
            run.role,
            run.learning_rate,
            run.seed,
            run.validation,
            run.test,
            run.error,
        ]
        yield [*values, f"runs/{run.name}"]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if v is None else f"{v:.8g}" if isinstance(v, float) else v for v in row])
    return text.getvalue()
