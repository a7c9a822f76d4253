"""Pictures for loaders."""

from pathlib import Path

import pytest

from benchmarks.loading.pictures import lay_out


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight made pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    assert lay_out(folder, 8, None) == 8
    return folder
