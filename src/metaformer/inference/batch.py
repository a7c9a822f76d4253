"""Predictions for a whole data set: one file from each process, written so that a stop loses nothing."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from metaformer.data.dataset import BAD_SHARE, Batch, Source
from metaformer.data.loader import Stop
from metaformer.data.sampler import EvalSampler
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError, OutputError
from metaformer.inference.predictor import Predictor
from metaformer.serialize import differences
from metaformer.storage import atomic_text, lock
from metaformer.tasks.classification.predict import BatchPredictor
from metaformer.training.progress import Progress

JOB = "job.json"


@dataclass(frozen=True)
class Bulk:
    """What predicting a data set came to, on this process."""

    file: Path
    images: int
    bad: int
    """Images that cannot be read; their lines say why."""
    before: int
    """Images that an earlier attempt had done."""


def predict_all(
    predictor: Predictor,
    source: Source,
    out: str | Path,
    world: World,
    *,
    data: str = "",
    skip_bad: bool = False,
    stop: Stop | None = None,
) -> Bulk:
    """Classify a source's images, process `r` of `world` each `world`-th, into `out/part-r-of-world.jsonl`.

    A part appears under its name when it is whole. What was done before a stop, a crash or a kill is kept
    beside it and not done again. Each line is one image: its result, or `path` and `error`.

    Args:
        predictor: the network.
        source: the images.
        out: folder of the parts; `job.json` in it says what they are predictions of.
        world: this process among all; they do not talk to each other.
        data: what to call the data set.
        skip_bad: write a line for an image that cannot be read, up to 0.1 % of them, rather than raise.
        stop: asked again and again; once it says so, the work ends and can be gone on with.

    Raises:
        BadImage, DataError: an image cannot be read; too many of them.
        OutputError: the folder cannot be written to, or holds predictions of something else.
        Interrupted: `stop` said so.
    """
    place = Path(out)
    _claim(place, data, {**_images(source), "processes": world.size, **_network(predictor)})
    whole = place / f"part-{world.rank:05d}-of-{world.size:05d}.jsonl"
    with lock(place / f".lock-{world.rank:05d}", str(whole)):
        return _predict(predictor, source, whole, world, skip_bad, stop)


def _predict(
    predictor: Predictor, source: Source, whole: Path, world: World, skip_bad: bool, stop: Stop | None
) -> Bulk:
    if not isinstance(predictor.predictor, BatchPredictor):
        raise ConfigError(f"data: no option of {predictor.model.spec.title}; name images or folders instead")
    batches = predictor.predictor.batches
    part = whole.with_name(f".{whole.name}")
    mine = len(range(world.rank, len(source), world.size))
    if whole.exists():
        done = _Done(whole, mine)
        if done.lines < mine or done.cut:
            raise OutputError(
                f"{whole}: damaged after {done.lines} of {mine} lines: delete it to make it anew"
            )
        return Bulk(whole, mine, done.bad, mine)
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
    return Bulk(whole, mine, bad, done.lines)


def _images(source: Source) -> dict[str, Any]:
    """How many there are, and which in what order."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.path(index)}\n".encode(errors="surrogateescape"))
    return {"images": len(source), "images_sha256": digest.hexdigest()}


def _network(predictor: Predictor) -> dict[str, Any]:
    model, digest = predictor.model, hashlib.sha256()
    for name, value in model.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "weights_sha256": digest.hexdigest(),
        "amp": model.amp,
        "model": model.name,
        "preprocess": predictor.predictor.model.preprocess.to_dict(),
        "classes": len(predictor.classes),
        **predictor.predictor.settings,
    }


def _claim(place: Path, data: str, job: dict[str, Any]) -> None:
    """Write down whose predictions the folder holds, or compare with what stands there."""
    file = place / JOB
    try:
        there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise OutputError(f"{file}: cannot be read ({error}): choose another folder") from error
    if there is not None and not isinstance(there, dict):
        raise OutputError(f"{file}: damaged: choose another folder, or delete it if you know what lies there")
    if there is None:
        if place.is_dir() and any(not name.startswith(".") for name in os.listdir(place)):
            raise OutputError(f"{place}: holds something else already: choose another folder")
        own = place / f".job-{os.getpid()}.json"  # all processes write the same, each from a file of its own
        with atomic_text(own) as stream:
            stream.write(json.dumps({"data": data, **job}, indent=1) + "\n")
        own.replace(file)
    elif changed := differences({name: value for name, value in there.items() if name != "data"}, job):
        raise OutputError(
            f"{place}: holds predictions made in another way ({'; '.join(changed)}): go on as before, "
            "or choose another folder"
        )


class _Done:
    """What stands in a part: whole lines from its beginning, up to the first that is none."""

    def __init__(self, file: Path, most: int) -> None:
        self.file, self.lines, self.bad, self.size, self.cut = file, 0, 0, 0, False
        try:
            with file.open("rb") as stream:
                for line in stream:
                    values = _values(line)
                    if values is None:
                        self.cut = True
                        break
                    self.lines, self.size = self.lines + 1, self.size + len(line)
                    self.bad += "error" in values
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{file}: cannot be read ({error.strerror}): delete it") from error
        if self.lines > most:
            raise OutputError(f"{file}: {self.lines} lines for {most} images: delete it to make it anew")

    def mend(self) -> None:
        """Cut off what a killed process, or machine, left unfinished: it is done again."""
        if self.cut:
            os.truncate(self.file, self.size)


def _values(line: bytes) -> dict[str, Any] | None:
    """A line's object; None where it is half a line, or none of ours."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
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
    """A batch's images in the order of their numbers, so that counting lines tells where to go on."""
    values = {int(i): result.to_dict() for i, result in zip(batch.indices, results, strict=True)}
    values |= {bad.index: {"path": str(source.path(bad.index)), "error": bad.reason} for bad in batch.bad}
    return [json.dumps(values[index], ensure_ascii=False) + "\n" for index in sorted(values)]


def _write(stream: TextIO, lines: list[str]) -> None:
    stream.writelines(lines)
    stream.flush()  # what the system holds outlives this process; the disk is waited for at the end
