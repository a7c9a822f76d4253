"""Looking at pictures without training on them: whether their boxes are boxes of them."""

from metaformer.data.detection import DetectionFolder
from metaformer.data.image import picture_size
from metaformer.data.survey import Seen, bad_ones, reason
from metaformer.errors import BadImage, DataError


def check_sizes(
    folder: DetectionFolder,
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Look at the header of every picture: that it is one, of the size that its annotations have.

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
    label = f"pictures of {folder.split}"
    bad = bad_ones(folder, see_size, label, part=part, skip_bad=skip_bad, workers=workers, progress=progress)
    if bad:
        more = f" (and {len(bad) - 1:,} more bad files; metaformer data check tells all)"
        raise BadImage(folder.path(bad[0].index), bad[0].trouble + (more if len(bad) > 1 else ""))


def see_size(folder: DetectionFolder, index: int) -> Seen:
    """Read the header of a picture."""
    try:
        size = picture_size(folder.path(index))
    except DataError as error:
        return Seen(index, trouble=reason(error))
    return Seen(index, *size, trouble=folder.misfit(index, size))
