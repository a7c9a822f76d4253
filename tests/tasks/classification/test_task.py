from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.errors import ConfigError, WeightsError
from metaformer.factory import create_model
from metaformer.tasks.base import Evaluation, StepContext, Task
from metaformer.tasks.classification.loss import build_criterion
from metaformer.tasks.classification.mixup import Mix
from metaformer.tasks.classification.task import ClassificationTask, build_classifier
from metaformer.weights.load import load_weights

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
LOOK = Preprocess(image_size=32)


@pytest.fixture
def task(folder: ImageFolder) -> ClassificationTask:
    model = build_classifier("poolformer_n", 3, image_size=32, overrides=dict(TINY))
    return ClassificationTask(
        model,
        "poolformer_n",
        AugmentedDataset(folder, LOOK.transform()),
        Evaluation(folder, LOOK),
        LOOK,
        build_criterion("cross_entropy"),
        mix=Mix(3, mixup=0.8, cutmix=1.0, smoothing=0.0),
    )


def test_it_is_a_task(task: ClassificationTask) -> None:
    as_task: Task = task
    assert as_task.metric in task.evaluate(task.model.eval()).metrics


def test_mixing_depends_on_the_moment_only(task: ClassificationTask) -> None:
    torch.manual_seed(0)
    batch = Batch(torch.randn(6, 3, 32, 32), torch.arange(6) % 3, torch.arange(6))
    with torch.no_grad():
        moments = [StepContext(3, 0), StepContext(3, 0), StepContext(4, 0), StepContext(3, 0, 1)]
        losses = [task.losses(task.model.eval(), batch, moment)["loss"].item() for moment in moments]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_files_of_a_batch_are_named(task: ClassificationTask) -> None:
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 2]), torch.tensor([0, 6]))
    assert [Path(name).name for name in task.names(batch)] == ["ant0.png", "cat1.png"]


def test_the_card_rebuilds_the_model(task: ClassificationTask) -> None:
    from metaformer.backbones.config import MetaFormerConfig
    from metaformer.backbones.metaformer import MetaFormer

    card = task.card()
    assert card["classes"] == ["ant", "bee", "cat"] and Preprocess.from_dict(card["preprocess"]) == LOOK
    again = MetaFormer(MetaFormerConfig.from_dict(card["model"]))
    again.load_state_dict(task.model.state_dict())


def test_a_checkpoint_of_other_classes_gives_all_but_the_last_layer(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    seven = create_model("poolformer_n", num_classes=7, **TINY)
    save_file(seven.state_dict(), tmp_path / "seven.safetensors")
    options = {"checkpoint": str(tmp_path / "seven.safetensors"), "overrides": dict(TINY)}
    three, same = (build_classifier("poolformer_n", n, **options) for n in (3, 7))  # type: ignore[arg-type]
    assert three.head.fc.weight.shape[0] == 3
    assert torch.equal(three.stem.conv.weight, seven.stem.conv.weight)
    assert torch.equal(same.head.fc.weight, seven.head.fc.weight)
    with pytest.raises(WeightsError):
        build_classifier("poolformer_n", 3, checkpoint=options["checkpoint"])  # type: ignore[arg-type]
    # a file wins over the published weights, so that nothing is downloaded
    build_classifier("poolformer_n", 3, pretrained=True, **options)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_grid_is_resampled(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    fixed = {**TINY, "mixers": ("identity", "identity", "identity", "spatial_fc")}
    torch.manual_seed(0)
    small = create_model("poolformer_n", num_classes=3, image_size=(64, 64), **fixed)
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    large = build_classifier(
        "poolformer_n", 3, checkpoint=str(tmp_path / "w.safetensors"), image_size=96, overrides=dict(fixed)
    )
    assert large(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert load_weights(small, tmp_path / "w.safetensors").complete


def test_fields_of_their_own_are_not_overridden() -> None:
    with pytest.raises(ConfigError, match=r"model\.num_classes"):
        build_classifier("poolformer_n", 3, overrides={"num_classes": 4})
    with pytest.raises(ConfigError, match="dimms"):
        build_classifier("poolformer_n", 3, overrides={"dimms": 4})


@pytest.mark.parametrize("mode", [False, True, "mlp"])
def test_what_blocks_recompute(mode: Any) -> None:
    model = build_classifier("poolformer_n", 3, overrides=dict(TINY), grad_checkpointing=mode)
    assert [stage.grad_checkpointing for stage in model.stages] == [mode] * 4
