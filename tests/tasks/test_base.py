from pathlib import Path
from typing import Any

import pytest

from metaformer.backbones.stage import Stage
from metaformer.config import ModelConfig
from metaformer.errors import ConfigError, MetaFormerError, UnknownName
from metaformer.factory import create_segmenter
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.tasks.base import load_initial_weights
from metaformer.tasks.dense import backbone_config
from toys import TINY


def test_overrides_win_over_defaults() -> None:
    network = ModelConfig(
        "poolformer_n", mixers=["pooling", "pooling", "identity", "identity"], overrides=TINY
    )
    config = backbone_config(network, grid_mode="interpolate", depths=(9, 9, 9, 9))
    assert (list(config.depths), config.grid_mode) == ([1, 1, 1, 1], "interpolate")
    assert config.mixers == ("pooling", "pooling", "identity", "identity")
    with pytest.raises(UnknownName, match="dimms"):
        backbone_config(ModelConfig("poolformer_n", overrides={"dimms": 1}))
    with pytest.raises(ConfigError, match=r"model\.drop_path_rate"):
        backbone_config(ModelConfig("poolformer_n", overrides={"drop_path_rate": 0.1}))


@pytest.fixture
def model() -> Segmenter:
    return create_segmenter("semantic_fpn", backbone_config(ModelConfig("poolformer_n", overrides=TINY)), 2)


def test_a_missing_file_is_named(model: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(MetaFormerError, match=r"gone\.safetensors"):
        load_initial_weights(model, ModelConfig(checkpoint=str(tmp_path / "gone.safetensors")))


@pytest.mark.parametrize("mode", [False, True, "mlp"])
def test_what_the_backbone_recomputes(model: Segmenter, mode: Any) -> None:
    load_initial_weights(model, ModelConfig(grad_checkpointing=mode))
    assert [stage.grad_checkpointing for stage in model.modules() if isinstance(stage, Stage)] == [mode] * 4
