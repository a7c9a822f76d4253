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
from metaformer.tasks.explain import mistakes_section
from metaformer.tasks.saved import saved_model
from metaformer.training.check import other_sections


def write_report(run: str | Path, explain: bool = True) -> Path:
    """Write RUN/report.html from the best checkpoint and the log: curves, examples, classes and settings.

    Args:
        run: the run's folder.
        explain: show the worst mistakes with class activation maps, for which the network is built.

    Raises:
        WeightsError: the run has no best checkpoint, or a damaged one.
        OutputError: the page cannot be written.
    """
    run_dir = RunDir(Path(run))
    best = read_checkpoint(run_dir.best)
    state = best.state
    spec, config = TASKS[state["card"]["task"]], from_dict(TrainConfig, state["config"])
    report = spec.report(state, config)

    def load() -> LoadedModel:
        return saved_model(best).to(torch.device("cpu"), "none")

    mistakes = mistakes_section(load, spec.explain, state, config) if explain else None
    if mistakes is not None:
        report = replace(report, sections=[*report.sections[:1], mistakes, *report.sections[1:]])
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
