"""Looking at label maps without training on them: what is wrong, and how much of each class there is."""

from metaformer.data.image import picture_size
from metaformer.data.label_map import count, read_label_map
from metaformer.data.segmentation import SegmentationFolder
from metaformer.data.survey import Seen, SeenLabels, bad_ones, digest, reason, see
from metaformer.errors import BadImage, DataError


def check_segmentation(
    folder: SegmentationFolder,
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Look at every label map: that it can be read, is as large as its picture, and holds known classes only.

    Of the pictures themselves the headers alone are read.

    Args:
        folder: the data.
        part: which share to look at, and of how many: a process's rank and the number of processes.
        skip_bad: let a few bad ones pass, which a training that leaves out bad pictures will then name.
        workers: processes that read; one per core when not given.
        progress: show a bar on stderr.

    Raises:
        BadImage: the first that cannot be used; the message says how many more there are.
        ConfigError: fewer than one process.
    """
    label = f"label maps of {folder.split}"
    bad = bad_ones(
        folder, see_labels, label, part=part, skip_bad=skip_bad, workers=workers, progress=progress
    )
    if not bad:
        return
    first = bad[0]
    path = folder.path(first.index) if first.trouble else folder.label_path(first.index)
    more = f" (and {len(bad) - 1:,} more bad files; metaformer data check tells all)" if len(bad) > 1 else ""
    raise BadImage(path, (first.trouble or first.label_trouble) + more)


def see_labels(folder: SegmentationFolder, index: int) -> Seen:
    """Read a label map, and of its picture the header."""
    try:
        size = picture_size(folder.path(index))
    except DataError as error:
        return Seen(index, trouble=reason(error))
    _, trouble = _labels(folder, index, size, hashed=False)
    return Seen(index, *size, label_trouble=trouble)


def see_pair(folder: SegmentationFolder, index: int) -> Seen:
    """Read a picture and its label map."""
    seen = see(folder, index)
    labels, trouble = _labels(folder, index, None if seen.trouble else (seen.width, seen.height))
    return Seen(index, seen.width, seen.height, seen.digest, seen.animated, seen.trouble, labels, trouble)


def _labels(
    folder: SegmentationFolder, index: int, size: tuple[int, int] | None, hashed: bool = True
) -> tuple[SeenLabels | None, str]:
    """What a label map holds, and what is wrong with it."""
    try:
        numbers = read_label_map(folder.label_path(index))
    except DataError as error:
        return None, reason(error)
    own = numbers.shape[1], numbers.shape[0]
    counts = count(numbers)
    faults = [folder.table.complaint(counts), folder.misfit(index, own, size) if size else ""]
    pixels, ignored = folder.table.pixels(counts)
    present = {label: many for label, many in enumerate(pixels) if many}
    seen = SeenLabels(digest(own, numbers.tobytes()) if hashed else b"", present, ignored)
    return seen, "; ".join(fault for fault in faults if fault)
