"""RUN/report.html: curves, images, confusions and settings of a run on one self-contained page."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from metaformer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from metaformer.checkpoint.run_dir import RunDir, read_log
from metaformer.config import TrainConfig
from metaformer.report.page import Log, settings
from metaformer.serialize import from_dict
from metaformer.storage import whole_file
from metaformer.tasks.classification.report import classify_content
from metaformer.tasks.detection.report import detect_content
from metaformer.tasks.segmentation.report import segment_content

CONTENTS: dict[str, Callable[[dict[str, Any], TrainConfig, Log], dict[str, Any]]] = {
    "classify": classify_content,
    "segment": segment_content,
    "detect": detect_content,
}
"""What the page shows of each task."""
FOLDERS = {"classify": "classification", "segment": "segmentation", "detect": "detection"}


def write_report(run: str | Path) -> Path:
    """Write the page of a run from its best checkpoint and its log.

    Raises:
        WeightsError: the run has no best checkpoint, or a damaged one.
        OutputError: the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    place = RunDir(Path(run))
    best, log = read_checkpoint(place.best), read_log(place.path)
    pages = Environment(loader=PackageLoader("metaformer", ""), autoescape=True, trim_blocks=True)
    template = pages.get_template(f"tasks/{FOLDERS[best.state['card']['task']]}/report.html.jinja")
    page = template.render(_content(place, best, log))
    file = place.path / "report.html"
    with whole_file(file) as stream:
        stream.write(page)
    return file


def _content(place: RunDir, best: Checkpoint, log: Log) -> dict[str, Any]:
    state, task = best.state, str(best.state["card"]["task"])
    config = from_dict(state["config"])
    return {
        **CONTENTS[task](state, config, log),
        "title": place.path.resolve().name,
        "best": place.best,
        "settings": settings(config),
        "footer": f"metaformer {metadata.version('metaformer')} · seed {config.seed} · "
        f"processes {state['world_size']} · threads {state['threads']}",
    }
