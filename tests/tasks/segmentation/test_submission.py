import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import ConfigError
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.segmentation.write import ade20k_sink, submission_image


def test_the_zip_holds_class_numbers_from_1_at_the_images_size(
    seen: Callable[..., Prediction], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ade20k_sink(tmp_path / "out") as add:
        for number in (1, 2):
            add("another", seen(f"ADE_test_{number:08d}.jpg"))
        assert not (tmp_path / "out" / "submission_ade20k.zip").exists()
    with zipfile.ZipFile(tmp_path / "out" / "submission_ade20k.zip") as archive:
        assert caplog.messages == ["submission: the server knows ADE20K's 150 classes, not 3"]
        assert archive.namelist() == ["ADE_test_00000001.png", "ADE_test_00000002.png"]
        with Image.open(io.BytesIO(archive.read("ADE_test_00000002.png"))) as image:
            assert image.mode == "L" and image.size == (12, 8)
            assert np.asarray(image)[3].tolist() == [1] * 4 + [2] * 4 + [3] * 4


def test_names_that_the_server_cannot_tell_apart_are_refused(
    seen: Callable[..., Prediction], tmp_path: Path
) -> None:
    with (
        pytest.raises(ConfigError, match=r"two images are called x\.png"),
        ade20k_sink(tmp_path / "out") as add,
    ):
        add("x", seen("a/x.jpg"))
        add("x_2", seen("b/x.jpg"))
    assert not list((tmp_path / "out").iterdir())
    for one in (seen(frame=0), seen()._replace(result=Segmentation("", np.zeros((2, 2), np.uint8), (), ()))):
        with pytest.raises(ConfigError, match="by their names"), ade20k_sink(tmp_path / "out") as add:
            add("x", one)


def test_more_classes_than_the_server_knows_are_refused() -> None:
    most = Segmentation("", np.array([[0, 149]], np.uint8), ("a",) * 150, ())
    assert np.asarray(submission_image(most)).tolist() == [[1, 150]]
    with pytest.raises(ConfigError, match="150 classes, but this network tells 151 apart"):
        submission_image(Segmentation("", np.zeros((1, 1), np.uint8), ("a",) * 151, ()))
