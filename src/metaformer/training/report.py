"""RUN/report.html: curves, images, confusions and settings of a run on one self-contained page."""

from importlib import metadata
from pathlib import Path
from typing import Any

from metaformer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from metaformer.checkpoint.run_dir import RunDir, read_log
from metaformer.report.page import Log, settings
from metaformer.serialize import from_dict
from metaformer.storage import whole_file
from metaformer.tasks import TASKS
from metaformer.tasks.base import TaskSpec
from metaformer.training.check import other_sections


def write_report(run: str | Path) -> Path:
    """Write the page of a run from its best checkpoint and its log.

    Raises:
        WeightsError: the run has no best checkpoint, or a damaged one.
        OutputError: the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    place = RunDir(Path(run))
    best, log = read_checkpoint(place.best), read_log(place.path)
    spec = TASKS[best.state["card"]["task"]]
    pages = Environment(loader=PackageLoader("metaformer", ""), autoescape=True, trim_blocks=True)
    template = pages.get_template(f"tasks/{spec.folder}/report.html.jinja")
    page = template.render(_content(place, best, log, spec))
    file = place.path / "report.html"
    with whole_file(file) as stream:
        stream.write(page)
    return file


def _content(place: RunDir, best: Checkpoint, log: Log, spec: TaskSpec) -> dict[str, Any]:
    state = best.state
    config = from_dict(state["config"])
    return {
        **spec.report(state, config, log),
        "title": place.path.resolve().name,
        "best": place.best,
        "settings": settings(config, other_sections(spec)),
        "footer": f"metaformer {metadata.version('metaformer')} · seed {config.seed} · "
        f"processes {state['world_size']} · threads {state['threads']}",
    }
