"""RUN/report.html: curves, examples, classes and settings of a run on one self-contained page."""

from importlib import metadata
from pathlib import Path

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.checkpoint.run_dir import RunDir, read_log
from metaformer.config import TrainConfig
from metaformer.report.page import render
from metaformer.serialize import from_dict
from metaformer.storage import atomic_text
from metaformer.tasks import TASKS
from metaformer.training.check import other_sections


def write_report(run: str | Path) -> Path:
    """Write the page of a run from its best checkpoint and its log.

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
    )
    file = run_dir.path / "report.html"
    with atomic_text(file) as stream:
        stream.write(page)
    return file
