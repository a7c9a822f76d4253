"""Text files of data sets as other programs write them."""

import codecs
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

_WIDE: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Encodings by their byte-order marks; the mark of UTF-32 begins with that of UTF-16."""
_log = logging.getLogger(__name__)


def read_text(path: str | Path, tell: Callable[[str], object] = _log.warning) -> str:
    r"""Text of a file in UTF-8, with or without byte-order mark, or in UTF-16 with one; lines end with \n.

    Args:
        path: the file.
        tell: called with a line about a file in another encoding than UTF-8.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        ValueError: another encoding, also as UnicodeDecodeError.
    """
    path = Path(path).expanduser()
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "is no ordinary file", str(path))
    data = path.read_bytes()
    encoding = next((name for mark, name in _WIDE.items() if data.startswith(mark)), "utf-8-sig")
    text = data.decode(encoding)
    if encoding != "utf-8-sig":
        tell(f"{path}: is {encoding}, read as such: other programs may need UTF-8")
    elif "\0" in text:
        raise ValueError("it holds zero bytes, as UTF-16 without byte-order mark does: save it as UTF-8")
    del data
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
