"""Found objects in COCO's results format, as its servers and pycocotools take them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from metaformer.engine.output.coco import ImageNumbers
from metaformer.engine.output.sink import Seen, Sink
from metaformer.engine.whole_file import whole_file

FILE = "coco.json"


@contextmanager
def coco_sink(place: Path, category_ids: Sequence[int] | None = None) -> Iterator[Sink]:
    """Write PLACE/coco.json when all results are in.

    Args:
        place: where to.
        category_ids: the number of each class; counted from 1 when not given.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(place / FILE) as stream:
        numbers, between = ImageNumbers(), "\n"
        stream.write("[")

        def add(name: str, seen: Seen) -> None:
            nonlocal between
            for row in seen.objects.to_coco(numbers.of(name), category_ids):
                stream.write(between + json.dumps(row))
                between = ",\n"

        yield add
        stream.write("\n]\n")
