"""A look at all the data before anything is learned, shared out over the processes of a run."""

from collections.abc import Callable
from typing import Any

from metaformer.distributed import World, raise_on_all_ranks
from metaformer.errors import DataError


def validate_splits(world: World, check: Callable[..., None], *folders: tuple[Any, bool]) -> None:
    """Let each process check its part of every folder, and fail together.

    Args:
        world: the processes.
        check: called with a folder, `part` (rank and size), `skip_bad` and `progress`.
        folders: data, and whether a few bad images of it are left to the training to leave out.

    Raises:
        DataError: what the check found; on the ranks that found nothing a RankError says so.
    """
    trouble: DataError | None = None
    try:
        for folder, skip_bad in folders:
            check(folder, part=(world.rank, world.size), skip_bad=skip_bad, progress=world.main)
    except DataError as error:
        trouble = error
    raise_on_all_ranks(trouble)
