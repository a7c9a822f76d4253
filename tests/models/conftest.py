"""For tests of models with published weights."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that downloads would have filled."""
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path))
    return tmp_path / "weights"
