"""`metaformer doctor`."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metaformer.cli.listing import table
from metaformer.cli.parser import Parser, say
from metaformer.errors import MetaFormerError, OutputError
from metaformer.process import one_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FOR_DEVELOPERS = ("dev", "peers")
"""Extras that tests and comparisons need."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    state: str
    """`ok`, `missing` of what is optional, or `broken`."""
    text: str


def run(argv: list[str]) -> int:
    """Tell what is installed, which kernels run and what is missing; status 1 where something is broken."""
    parser = Parser(
        "doctor",
        "What is installed, which kernels run here, what is missing and how to get it; a small network is "
        "optimized and compared with itself.",
        "metaformer doctor",
    )
    parser.parse_args(argv)
    findings = [*_packages(), *_machine()]
    if all(finding.state != "broken" for finding in findings):
        findings.append(_network())
    say(table(("", "", ""), findings).lstrip())
    broken = [finding.subject for finding in findings if finding.state == "broken"]
    say(f"\nbroken: {', '.join(broken)}" if broken else "\nall that is installed works")
    return int(bool(broken))


def _packages() -> Iterator[Finding]:
    """Python, what metaformer needs, and each extra."""
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.platform(terse=True)}")
    for extra, needed in _requirements().items():
        wrong = [problem for requirement in needed if (problem := _problem(requirement))]
        name = f"extra {extra}" if extra else f"metaformer {version('metaformer')}"
        if not wrong:
            yield Finding(name, "ok", ", ".join(f"{one.name} {version(one.name)}" for one in needed))
        else:
            remedy = f"pip install 'metaformer[{extra}]'" if extra else "pip install --upgrade metaformer"
            yield Finding(name, "missing" if extra else "broken", f"{', '.join(wrong)}: {remedy}")


def _requirements() -> dict[str, list["Requirement"]]:
    """Required packages by extra, those of metaformer itself under the empty name."""
    from packaging.requirements import Requirement

    found: dict[str, list[Requirement]] = {"": []}
    for requirement in map(Requirement, requires("metaformer") or ()):
        for extra in ["", *(metadata("metaformer").get_all("Provides-Extra") or ())]:
            marker = requirement.marker
            if extra not in FOR_DEVELOPERS and (marker.evaluate({"extra": extra}) if marker else not extra):
                found.setdefault(extra, []).append(requirement)
    return found


def _problem(requirement: "Requirement") -> str | None:
    """What is wrong with a required package, or None."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"no {requirement.name}"
    wanted = requirement.specifier
    return None if wanted.contains(found, prereleases=True) else f"{requirement.name} {found}, not {wanted}"


def _machine() -> Iterator[Finding]:
    """Processor and GPUs, what computes on each, and the cache directory."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it loads
        yield Finding("torch", "broken", f"cannot be imported ({one_line(str(error))}): install it anew")
        return
    from metaformer.deploy.dtype import fastest_dtype
    from metaformer.ops.describe import describe

    names = {torch.device("cpu"): f"{_processor()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        names[torch.device("cuda", i)] = torch.cuda.get_device_name(i)
    for device, name in names.items():
        yield Finding(str(device), "ok", name)
        yield Finding(f"{device} kernels", "ok", describe(device))
        yield Finding(f"{device} dtype", "ok", fastest_dtype(device)[1])
    yield _cache()


def _cache() -> Finding:
    """The folder of weights and kernels, and whether it can be written to."""
    from metaformer.storage import cache_dir

    try:
        folder = cache_dir()
    except OutputError as error:
        return Finding("cache", "broken", str(error))
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    if exists.is_dir() and os.access(exists, os.W_OK):
        return Finding("cache", "ok", str(folder))
    return Finding("cache", "broken", f"{exists}: no folder to write to; set METAFORMER_HOME to one")


def _processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def _network() -> Finding:
    """Whether a small network computes the same once optimized, which `optimize` checks."""
    from metaformer.deploy.optimize import optimize
    from metaformer.factory import create_model

    try:
        optimize(create_model("poolformer_n", image_size=(64, 64)))
    except MetaFormerError as error:
        return Finding("network", "broken", str(error))
    return Finding("network", "ok", "PoolFormer-N computes the same with and without kernels")
