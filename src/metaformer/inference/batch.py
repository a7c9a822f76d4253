"""Prediction of a whole data set: one file per process, resumed after a stop or a kill."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from metaformer.data.dataset import BAD_SHARE, Batch, Source
from metaformer.data.loader import Stop
from metaformer.data.sampler import EvalSampler
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError, OutputError
from metaformer.inference.exported import file_hashes
from metaformer.inference.predictor import Predictor
from metaformer.serialize import differences, parse_json
from metaformer.storage import as_path, lock, open_regular, read_json, write_text
from metaformer.tasks.classifier import BatchPredictor
from metaformer.tasks.exported import ExportedNetwork
from metaformer.training.progress import Progress
from metaformer.weights.io import state_sha256

JOB = "job.json"


@dataclass(frozen=True)
class BatchResult:
    """Counts of a prediction job on this process."""

    file: Path
    images: int
    bad: int
    """Images that cannot be read; their lines have the reason."""
    before: int
    """Images that were predicted before the job was resumed."""


def predict_all(
    predictor: Predictor[Any],
    source: Source,
    out: str | Path,
    world: World,
    *,
    data: str = "",
    skip_bad: bool = False,
    stop: Stop | None = None,
) -> BatchResult:
    """Predict every `world`-th image of a source, from the rank on, into `out/part-RANK-of-WORLD.jsonl`.

    A part appears under its name when it is complete; until then its lines are in a hidden file, from which a
    stopped, crashed or killed job is resumed. Each line is one image: its result, or `path` and `error`.

    Args:
        predictor: the network.
        source: the images.
        out: folder of the parts; its `job.json` identifies network, settings and data.
        world: rank and number of processes, which do not communicate.
        data: name of the data set.
        skip_bad: write a line for an image that cannot be read, up to 0.1 % of them, rather than raise.
        stop: polled between images; once true, the job ends and can be resumed.

    Raises:
        BadImage, DataError: an image cannot be read; too many of them.
        OutputError: the folder cannot be written to, or holds predictions of another job.
        Interrupted: `stop` was true.
    """
    place = as_path(out, "out", OutputError)
    _claim(place, data, {**_images(source), "processes": world.size, **_network(predictor)})
    whole = place / f"part-{world.rank:05d}-of-{world.size:05d}.jsonl"
    with lock(place / f".lock-{world.rank:05d}", str(whole)):
        return _predict(predictor, source, whole, world, skip_bad, stop)


def _predict(
    predictor: Predictor[Any], source: Source, whole: Path, world: World, skip_bad: bool, stop: Stop | None
) -> BatchResult:
    if not isinstance(predictor.predictor, BatchPredictor):
        raise ConfigError(f"data: no option of {predictor.model.spec.title}; name images or folders instead")
    batches = predictor.predictor.batches
    part = whole.with_name(f".{whole.name}")
    mine = len(range(world.rank, len(source), world.size))
    if whole.exists():
        done = _Done(whole, mine)
        if done.lines < mine or done.cut:
            raise OutputError(
                f"{whole}: damaged after {done.lines} of {mine} lines: delete it to predict these again"
            )
        return BatchResult(whole, mine, done.bad, mine)
    done = _Done(part, mine)
    done.mend()
    bad = done.bad
    sampler = EvalSampler(
        len(source), batch_size=predictor.batch_size, rank=world.rank, world=world.size, start=done.lines
    )
    progress = Progress(mine, done.lines, 1, quiet=not world.main)
    try:
        with _appending(part) as stream:
            for batch, results in batches(source, sampler, stop=stop, skip_bad=skip_bad):
                bad += len(batch.bad)
                _write(stream, _lines(source, batch, results))
                progress.update({"bad": bad} if bad else {}, len(results) + len(batch.bad))
                if bad > BAD_SHARE * mine:
                    raise DataError(
                        f"{bad} of {mine} images cannot be read, more than {BAD_SHARE:.1%}; see {part}"
                    )
    finally:
        progress.close()
    part.replace(whole)
    return BatchResult(whole, mine, bad, done.lines)


def _images(source: Source) -> dict[str, Any]:
    """Number and order of the images."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.path(index)}\n".encode(errors="surrogateescape"))
    return {"images": len(source), "images_sha256": digest.hexdigest()}


def _network(predictor: Predictor[Any]) -> dict[str, Any]:
    model = predictor.model
    if isinstance(model.model, ExportedNetwork):  # its weights lie in files, not in a state dict
        runtime: Any = model.model.runtime
        weights = hashlib.sha256("".join(file_hashes(runtime.file).values()).encode()).hexdigest()
    else:
        weights = state_sha256(model.model.state_dict())
    return {
        "weights_sha256": weights,
        "amp": model.amp,
        "model": model.name,
        "preprocess": predictor.predictor.model.preprocess.to_dict(),
        "classes": len(predictor.classes),
        **predictor.predictor.settings,
    }


def _claim(place: Path, data: str, job: dict[str, Any]) -> None:
    """Write what the folder holds predictions of, or compare with what it holds."""
    file = place / JOB
    try:
        there = read_json(file, OutputError) if file.exists() else None
    except OutputError as error:
        raise OutputError(f"{error}: choose another folder") from error
    if there is not None and not isinstance(there, dict):
        raise OutputError(f"{file}: damaged: choose another folder, or delete the file")
    if there is None:
        if place.is_dir() and any(not name.startswith(".") for name in os.listdir(place)):
            raise OutputError(f"{place}: holds something else already: choose another folder")
        own = place / f".job-{os.getpid()}.json"  # all processes write the same content, each its own file
        write_text(own, json.dumps({"data": data, **job}, indent=1) + "\n")
        own.replace(file)
    elif changed := differences({name: value for name, value in there.items() if name != "data"}, job):
        raise OutputError(
            f"{place}: holds predictions of another job ({'; '.join(changed)}): use the same settings, "
            "or choose another folder"
        )


class _Done:
    """Complete lines of a part, up to the first that is damaged."""

    def __init__(self, file: Path, most: int) -> None:
        self.file, self.lines, self.bad, self.size, self.cut = file, 0, 0, 0, False
        if not os.path.lexists(file):
            return
        try:
            with open_regular(file, OutputError) as stream:
                for line in stream:
                    values = _values(line)
                    if values is None:
                        self.cut = True
                        break
                    self.lines, self.size = self.lines + 1, self.size + len(line)
                    self.bad += "error" in values
        except OutputError as error:
            raise OutputError(f"{error}: delete it") from error
        if self.lines > most:
            raise OutputError(f"{file}: {self.lines} lines for {most} images: delete it")

    def mend(self) -> None:
        """Cut off an incomplete line of a killed process."""
        if self.cut:
            os.truncate(self.file, self.size)


def _values(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where the line is incomplete or no prediction."""
    try:
        values = parse_json(line, "line") if line.endswith(b"\n") else None
    except DataError:
        return None
    return values if isinstance(values, dict) and "path" in values else None


@contextmanager
def _appending(part: Path) -> Iterator[TextIO]:
    try:
        with part.open("a", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{part}: cannot write ({error.strerror or error})") from error


def _lines(source: Source, batch: Batch, results: list[Any]) -> list[str]:
    """Lines of a batch in the order of the images, so that their number says where to resume."""
    values = {int(i): result.to_dict() for i, result in zip(batch.indices, results, strict=True)}
    values |= {bad.index: {"path": str(source.path(bad.index)), "error": bad.reason} for bad in batch.bad}
    return [json.dumps(values[index], ensure_ascii=False) + "\n" for index in sorted(values)]


def _write(stream: TextIO, lines: list[str]) -> None:
    stream.writelines(lines)
    stream.flush()  # the page cache outlives this process; fsync follows at the end
