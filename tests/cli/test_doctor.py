"""`metaformer doctor`."""

import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from metaformer.cli.doctor import FOR_DEVELOPERS, _problem

Cli = Callable[..., Any]
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_it_tells_what_is_there(cli: Cli) -> None:
    status, out, _ = cli("doctor")
    assert status == 0
    for extra in PROJECT["optional-dependencies"].keys() - set(FOR_DEVELOPERS):
        assert f"extra {extra} " in out
    for requirement in PROJECT["dependencies"]:
        name = Requirement(requirement).name
        assert f"{name} {version(name)}" in out
    assert "cpu kernels" in out and "PoolFormer-N computes the same" in out


def test_a_cache_that_cannot_be_is_broken(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path / "file/cache"))
    status, out, _ = cli("doctor")
    assert status == 1
    assert "METAFORMER_HOME" in out and out.strip().endswith("broken: cache")


def test_a_torch_that_cannot_be_imported_is_broken(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, out, err = cli("doctor")
    assert status == 1 and not err
    assert "cannot be imported" in out and out.strip().endswith("broken: torch")


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    assert _problem(Requirement("numpy>=1")) is None
    assert "no-such-package" in str(_problem(Requirement("no-such-package")))
    assert version("numpy") in str(_problem(Requirement("numpy<1")))
