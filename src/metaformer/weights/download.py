"""Download published files once, with resumption and hash checks."""

import contextlib
import hashlib
import http.client
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from metaformer.errors import DownloadError
from metaformer.serialize import LINE, shown
from metaformer.storage import cache_dir, lock, read_text, sync

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30.0
USER_AGENT = "metaformer"
_LONGEST_TAG = 1000
_BY_HAND = "name it (checkpoint_path=, --checkpoint, in training --model.checkpoint)"


class Published(Protocol):
    """A published file."""

    @property
    def url(self) -> str: ...

    @property
    def file(self) -> str: ...

    @property
    def sha256(self) -> str: ...


def fetch(source: Published, progress: bool = True) -> Path:
    """Local file of a source, downloaded if it is not in the cache.

    Raises:
        DownloadError: no network, no such file, no room, or not the file that was published.
    """
    target = cache_dir() / "weights" / source.file
    if target.is_file():
        return target
    return download(source.url, target, source.sha256, progress=progress)


def download(
    url: str, target: Path, sha256: str = "", *, progress: bool = True, by_hand: str = _BY_HAND
) -> Path:
    """Download `url` to `target`, resuming the `.part` file of an earlier try.

    Args:
        url: http or https.
        target: the file; it is created when the download is complete.
        sha256: first digits of the expected SHA-256, or empty.
        progress: show a bar on the standard error.
        by_hand: what to do with the file where it was fetched by other means, for errors.

    Raises:
        DownloadError: the server cannot be reached, answers with an error, or sends another file.
    """
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url}: only http and https addresses are downloaded")
    part = target.with_name(target.name + ".part")
    locked = target.with_name(target.name + ".part.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(locked, str(target), math.inf):
            if target.is_file():  # another process fetched it meanwhile
                return target
            _fetch_all(url, part, progress)
            _check(url, part, sha256)
            sync(part)
            os.replace(part, target)
            sync(target.parent)
            locked.unlink(missing_ok=True)  # who waits for it finds the target
    except _Failed as error:
        text = f"{error}. Without a network, fetch the file elsewhere and {by_hand}"
        raise DownloadError(text) from error
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


def _fetch_all(url: str, part: Path, progress: bool) -> None:
    """Retry until all of it is there."""
    reason: object = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(8.0, 0.25 * 2**attempt))
        try:
            if _fetch_rest(url, part, progress):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the part is longer than the file: not this file's
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise _Failed(url, part, f"the server answers {error.code} {error.reason}") from error
            reason = f"the server answers {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = error.reason
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = error or type(error).__name__
    raise _Failed(url, part, reason)


def _fetch_rest(url: str, part: Path, progress: bool) -> bool:
    """Append to `part` what is missing; whether it is complete then."""
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    version = part.with_name(part.name + ".etag")
    if done:
        request.add_header("Range", f"bytes={done}-")
        if version.is_file():  # do not join two versions of a file
            request.add_header("If-Range", read_text(version, DownloadError, largest=_LONGEST_TAG).strip())
    # an opener of its own: the shared one would keep the proxies of the first request
    with urllib.request.build_opener().open(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the server sends the whole file, or another version of it
            done = 0
        if response.headers.get_content_type() == "text/html":  # as hosts ask back or refuse
            raise _Failed(url, part, "the server sends a web page and not the file")
        total = _total(response, done)
        etag = response.headers.get("ETag") or ""
        if etag.startswith('"') and etag in LINE:  # a weak one says nothing about bytes
            version.write_text(etag)
        else:
            version.unlink(missing_ok=True)
        with part.open("r+b" if done else "wb") as file:
            file.seek(done)
            done += _copy(response, file, done, total, part.name.removesuffix(".part") if progress else "")
            file.truncate()
    if total is None or done == total:
        version.unlink(missing_ok=True)
        return True
    return False


def _total(response: Any, done: int) -> int | None:
    length = response.headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal() and len(length) < 19):
        raise http.client.HTTPException(f"the server sends a Content-Length of {shown(length)}")
    return done + int(length)


def _copy(response: Any, file: BinaryIO, done: int, total: int | None, label: str) -> int:
    """Copy the response under a progress bar; a cut connection ends it early."""
    copied = 0
    with _bar(done, total, label) as advance:
        while True:
            try:
                chunk = response.read(CHUNK)
            except http.client.IncompleteRead as error:
                chunk = error.partial
            except (TimeoutError, ConnectionError):
                chunk = b""
            if not chunk:
                return copied
            file.write(chunk)
            copied += len(chunk)
            advance(len(chunk))


@contextlib.contextmanager
def _bar(done: int, total: int | None, label: str) -> Iterator[Callable[[int], object]]:
    """A progress bar with rate and remaining time, where tqdm is installed and a label given."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _: None
        return
    with tqdm(
        total=total, initial=done, unit="B", unit_scale=True, unit_divisor=1024, desc=label, disable=not label
    ) as bar:
        yield bar.update


def _check(url: str, part: Path, sha256: str) -> None:
    """Remove a file that is not the published one."""
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256.lower()):
        part.unlink()
        raise DownloadError(
            f"{url}: the file's SHA-256 begins with {digest[: len(sha256)]}, published is {sha256}; it was "
            "removed. Try again; if it stays so, the file or the way to it was changed"
        )


class _Failed(DownloadError):
    """The server did not send the file."""

    def __init__(self, url: str, part: Path, reason: object) -> None:
        size = part.stat().st_size if part.is_file() else 0
        kept = f"; {size:,} bytes are kept in {part} for the next try" if size else ""
        super().__init__(f"{url}: {reason}{kept}")
