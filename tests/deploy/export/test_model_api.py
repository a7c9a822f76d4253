"""OpenVINO's Model API reads our metadata: `make test-oracles`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer import Predictor
from metaformer.deploy.export.write import WRITERS, export


@pytest.mark.oracle
@pytest.mark.parametrize("suffix", WRITERS)
def test_the_model_api_gives_our_label(
    suffix: str, untrained: dict[str, Path], demo: Path, tmp_path: Path
) -> None:
    from model_api.models import Model

    model = Model.create_model(str(export(untrained["classify"], tmp_path / f"digits{suffix}").path))
    files = sorted((demo / "classify" / "val").rglob("*.png"))[:10]
    for file, ours in zip(files, Predictor(untrained["classify"])(files), strict=True):
        with Image.open(file) as image:
            (first, *_) = model(np.asarray(image.convert("RGB"))).top_labels
        assert first.name == ours.label
        assert first.confidence == pytest.approx(ours.score, abs=0.01), "it resizes by OpenCV"
