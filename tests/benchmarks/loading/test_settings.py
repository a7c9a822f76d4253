"""What is refused, and whose augmentation the pipelines are."""

import pytest

from benchmarks.loading.settings import LoadingConfig, training
from metaformer.config import AugmentConfig
from metaformer.errors import ConfigError
from metaformer.process import cores
from metaformer.recipes.poolformer import COMMON


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rounds": 0}, "rounds: 0 must be at least 1"),
        ({"workers": 10_000}, "workers: 10000 must lie between 0 and"),
        ({"images": 63}, "63 do not fill one batch of 64"),
        ({"model_speed": 0.0}, "model_speed: 0.0 must be above 0"),
        ({"pipelines": ("trian",)}, "did you mean train"),
    ],
)
def test_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        LoadingConfig(**values)  # type: ignore[arg-type]


def test_a_worker_for_each_core() -> None:
    assert LoadingConfig().processes == cores()
    assert LoadingConfig(workers=0).processes == 0


def test_the_recipes_augmentation() -> None:
    assert training("train", 224).augment == COMMON.augment
    assert training("plain", 32).augment != AugmentConfig()
    assert training("plain", 32).data.image_size == 32
