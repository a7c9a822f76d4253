"""The page that shows a run, while it goes on and when it is done."""

from importlib import metadata
from pathlib import Path

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.checkpoint.run_dir import RunDir, read_log
from metaformer.config import TrainConfig
from metaformer.report.blocks import Example
from metaformer.report.page import render
from metaformer.serialize import from_dict
from metaformer.storage import write_text
from metaformer.tasks import TASKS
from metaformer.training.check import other_sections


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html from the best checkpoint and the log: curves, examples, classes and settings.

    Raises:
        WeightsError: the run has no best checkpoint, or a damaged one.
        OutputError: the page cannot be written.
    """
    run_dir = RunDir(Path(run))
    state = read_checkpoint(run_dir.best).state
    spec, config = TASKS[state["card"]["task"]], from_dict(TrainConfig, state["config"])
    page = render(
        spec.report(state, config),
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
