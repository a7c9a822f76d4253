"""Images for loaders."""

from pathlib import Path

import pytest

from benchmarks.loading.images import lay_out


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight made images."""
    folder = tmp_path_factory.mktemp("images")
    assert lay_out(folder, 8, None) == 8
    return folder
