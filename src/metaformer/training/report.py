"""The page that shows a run, while it goes on and when it is done."""

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.checkpoint.run_dir import RunDir, read_log
from metaformer.config import TrainConfig
from metaformer.report.blocks import Example
from metaformer.report.page import render
from metaformer.serialize import from_dict
from metaformer.storage import write_text
from metaformer.tasks import TASKS
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.explain import ErrorMaps
from metaformer.tasks.report import no_maps
from metaformer.tasks.saved import saved_model
from metaformer.training.check import other_sections


def write_report(run: str | Path, explain: bool = True) -> Path:
    """Write RUN/report.html from the best checkpoint and the log: curves, examples, classes and settings.

    Args:
        run: the run's folder.
        explain: show class activation maps beside errors, for which the network is built.

    Raises:
        WeightsError: the run has no best checkpoint, or a damaged one.
        OutputError: the page cannot be written.
    """
    run_dir = RunDir(Path(run))
    best = read_checkpoint(run_dir.best)
    state = best.state
    spec, config = TASKS[state["card"]["task"]], from_dict(TrainConfig, state["config"])

    def load() -> LoadedModel:
        return saved_model(best).to(torch.device("cpu"), "none")

    maps = ErrorMaps(load, spec.explain, state["card"]["classes"])
    report = spec.report(state, config, maps if explain else no_maps)
    if maps.note:
        images, *others = report.sections
        images = replace(images, note=f"{images.note} {maps.note}".strip())
        report = replace(report, sections=[images, *others])
    page = render(
        report,
        state,
        config,
        read_log(run_dir.path),
        run_dir.best,
        other_sections(spec) | spec.unused.keys(),
        f"metaformer {metadata.version('metaformer')} · seed {config.seed} · "
        f"processes {state['world_size']} · threads {state['threads']}",
        [Example({"sample": uri}, caption) for caption, uri in state.get("samples", ())],
    )
    file = run_dir.path / "report.html"
    write_text(file, page)
    return file
