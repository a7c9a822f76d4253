"""Names for the files that are written of pictures."""

from pathlib import Path


class FileNames:
    """Give each picture the name of its own file without ending, numbered where two would be the same.

    Names that differ in capitals only count as the same: some file systems think so.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, path: str | Path) -> str:
        """A name that was not given before; `picture` for an image in memory, whose path is empty."""
        return self.unlike(Path(path).stem or "picture")

    def unlike(self, wanted: str) -> str:
        """This name, or with the first number that makes it one that was not given before."""
        name, number = wanted, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name.casefold())
        return name
