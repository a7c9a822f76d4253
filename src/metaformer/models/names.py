"""Names of dense networks: a kind, and perhaps backbone and tag."""

from collections.abc import Iterable
from fnmatch import fnmatch

from metaformer.backbones.variants import VARIANTS


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that fit a pattern with `*` and `?`, held against name and name.tag; all if it is empty."""
    return [
        name
        for name in names
        if not pattern or fnmatch(name, pattern) or fnmatch(name.partition(".")[0], pattern)
    ]


def combined(kinds: Iterable[str]) -> list[str]:
    """Each kind on each backbone."""
    return [f"{kind}_{variant}" for kind in kinds for variant in VARIANTS]


def split(name: str, kinds: Iterable[str]) -> tuple[str, str, str] | None:
    """Kind, backbone and tag in a name, the latter two perhaps empty; None where no kind is in it."""
    model, _, tag = name.partition(".")
    for kind in kinds:
        if model == kind or model.startswith(f"{kind}_"):
            backbone = model[len(kind) + 1 :]
            if not backbone or backbone in VARIANTS:
                return kind, backbone, tag
    return None
