"""Images for loaders, and warnings of other libraries."""

from pathlib import Path

import pytest

from benchmarks.loaders import write_image_folder

WARNINGS = (
    "ignore:unclosed file:ResourceWarning",  # timm
    "ignore:The image decoding:DeprecationWarning",  # torchvision
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "images" in getattr(item, "fixturenames", ()):
            for warning in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of eight generated images."""
    folder = tmp_path_factory.mktemp("images")
    assert write_image_folder(folder, 8, None) == 8
    return folder
