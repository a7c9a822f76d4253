from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.distributed import World
from metaformer.tasks.base import StepContext
from metaformer.tasks.classification.task import ClassificationTask
from metaformer.training.train import train
from toys import build_task

Configure = Callable[..., TrainConfig]


def test_the_model_is_made_for_the_data_and_the_settings(configure: Configure) -> None:
    config = configure(
        model={
            "mixers": ["pooling", "pooling", "attention", "identity"],
            "drop_path_rate": 0.25,
            "head_dropout": 0.5,
        },
        data={"image_size": 64},
    )
    model = build_task(config, World()).model
    assert model.num_classes == 3 and model.config.image_size == (64, 64)
    assert model.config.mixers == ("pooling", "pooling", "attention", "identity")
    assert (model.config.drop_path_rate, model.config.head_dropout) == (0.25, 0.5)
    assert {
        m.config.mixers for m in [build_task(configure(model={"mixers": "identity"}), World()).model]
    } == {("identity",) * 4}


def test_the_first_weights_are_a_function_of_the_seed(configure: Configure) -> None:
    one, same, other = (build_task(configure(seed=seed), World()).model for seed in (1, 1, 2))
    weights = [model.head.fc.weight for model in (one, same, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_repeated_augmentation_shows_each_image_that_often(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = ClassificationTask.losses, list[list[int]]()

    def watched(
        self: ClassificationTask, model: nn.Module, batch: Batch, moment: StepContext
    ) -> dict[str, Tensor]:
        seen.append(batch.indices.tolist())
        return honest(self, model, batch, moment)

    monkeypatch.setattr(ClassificationTask, "losses", watched)
    for repeated_aug in (1, 3):
        seen.clear()
        train(
            configure(data={"repeated_aug": repeated_aug}, schedule={"epochs": 1}),
            tmp_path / str(repeated_aug),
        )
        assert len(seen) == 4  # an epoch is as long as the data
        for batch in seen:
            assert set(Counter(batch).values()) == {repeated_aug}
