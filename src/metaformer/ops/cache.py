"""Where the library keeps what it can make or fetch again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$METAFORMER_HOME`, or `metaformer` in `$XDG_CACHE_HOME` or ~/.cache."""
    home = os.environ.get("METAFORMER_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "metaformer"
