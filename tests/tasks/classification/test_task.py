from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.config import TrainConfig
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.data.shards.write import write_shards
from metaformer.distributed import World
from metaformer.errors import ConfigError, WeightsError
from metaformer.factory import create_model
from metaformer.tasks.base import StepContext
from metaformer.tasks.classification.evaluate import ClassificationEvaluation
from metaformer.tasks.classification.loss import CrossEntropy, build_criterion
from metaformer.tasks.classification.mixup import Mixup
from metaformer.tasks.classification.task import ClassificationTask
from metaformer.tasks.classifier import build_classifier
from metaformer.training.train import train
from metaformer.weights.load import load_weights
from toys import TINY, Configure, build_task, write_image_folder

PREPROCESS = Preprocess(image_size=32)


@pytest.fixture
def task(configure: Configure, folder: ImageFolder) -> ClassificationTask:
    return ClassificationTask(
        build_classifier(configure(), 3),
        "poolformer_n",
        AugmentedDataset(folder, PREPROCESS.transform()),
        ClassificationEvaluation(folder, PREPROCESS),
        PREPROCESS,
        build_criterion("cross_entropy"),
        mix=Mixup(3, mixup=0.8, cutmix=1.0, smoothing=0.0),
    )


def test_it_is_evaluated_by_its_metric(task: ClassificationTask) -> None:
    assert task.metric in task.evaluate(task.model.eval()).metrics


def test_mixing_depends_on_the_step_only(task: ClassificationTask) -> None:
    torch.manual_seed(0)
    batch = Batch(torch.randn(6, 3, 32, 32), torch.arange(6) % 3, torch.arange(6))
    contexts = [StepContext(3, 0), StepContext(3, 0), StepContext(4, 0), StepContext(3, 0, 1)]
    with torch.no_grad():
        losses = [task.losses(task.model.eval(), batch, context)["loss"].item() for context in contexts]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_files_of_a_batch_are_named(task: ClassificationTask) -> None:
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 2]), torch.tensor([0, 6]))
    assert [Path(name).name for name in task.names(batch)] == ["ant0.png", "cat1.png"]


def test_the_model_is_built_for_the_data_and_the_settings(configure: Configure) -> None:
    mixers = ["pooling", "pooling", "attention", "identity"]
    settings = {"mixers": mixers, "drop_path_rate": 0.25, "head_dropout": 0.5}
    model = build_task(configure(model=settings, data={"image_size": 64})).model
    assert model.num_classes == 3 and model.config.image_size == (64, 64)
    assert model.config.mixers == tuple(mixers)
    assert (model.config.drop_path_rate, model.config.head_dropout) == (0.25, 0.5)
    identity = build_task(configure(model={"mixers": "identity"})).model
    assert identity.config.mixers == ("identity",) * 4


def test_initial_weights_are_a_function_of_the_seed(configure: Configure) -> None:
    one, same, other = (build_task(configure(seed=seed)).model.head.fc.weight for seed in (1, 1, 2))
    assert one.equal(same) and not one.equal(other)


def test_repeated_augmentation_takes_each_image_that_often(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, batches = ClassificationTask.losses, list[list[int]]()

    def recorded(
        self: ClassificationTask, model: nn.Module, batch: Batch, context: StepContext
    ) -> dict[str, Tensor]:
        batches.append(batch.indices.tolist())
        return losses(self, model, batch, context)

    monkeypatch.setattr(ClassificationTask, "losses", recorded)
    for repeated_aug in (1, 3):
        batches.clear()
        config = configure(data={"repeated_aug": repeated_aug}, schedule={"epochs": 1})
        train(config, tmp_path / str(repeated_aug))
        assert len(batches) == 4  # an epoch is as long as the data
        assert all(set(Counter(batch).values()) == {repeated_aug} for batch in batches)


def test_a_checkpoint_of_other_classes_gives_all_but_the_last_layer(
    configure: Configure, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "seven.safetensors"
    seven = create_model("poolformer_n", num_classes=7, **{k: tuple(v) for k, v in TINY.items()})
    save_file(seven.state_dict(), file)
    config = configure(model={"checkpoint": str(file)})
    three, same = (build_classifier(config, classes) for classes in (3, 7))
    assert three.head.fc.weight.shape[0] == 3
    assert torch.equal(three.stem.conv.weight, seven.stem.conv.weight)
    assert torch.equal(same.head.fc.weight, seven.head.fc.weight)
    with pytest.raises(WeightsError):
        build_classifier(replace(config, model=replace(config.model, overrides={})), 3)
    # a file takes precedence over published weights: nothing is downloaded
    build_classifier(replace(config, model=replace(config.model, pretrained=True)), 3)


def test_a_checkpoint_of_another_grid_is_resampled(configure: Configure, tmp_path: Path) -> None:
    fixed = {**TINY, "mixers": ("identity", "identity", "identity", "spatial_fc")}
    torch.manual_seed(0)
    small = create_model("poolformer_n", num_classes=3, image_size=(64, 64), **fixed)
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    model = {"checkpoint": str(tmp_path / "w.safetensors"), "overrides": dict(fixed)}
    large = build_classifier(configure(model=model, data={"image_size": 96}), 3)
    assert large(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert load_weights(small, tmp_path / "w.safetensors").complete


@pytest.mark.parametrize(("field", "named"), [("num_classes", r"model\.num_classes"), ("dimms", "dimms")])
def test_overrides_that_cannot_be_are_named(configure: Configure, field: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_classifier(configure(model={"overrides": {field: 4}}), 3)


@pytest.mark.parametrize("mode", [False, True, "mlp"])
def test_stages_recompute_what_is_configured(configure: Configure, mode: Any) -> None:
    model = build_classifier(configure(model={"grad_checkpointing": mode}), 3)
    assert [stage.grad_checkpointing for stage in model.stages] == [mode] * 4


def test_classes_are_balanced_by_weights_or_by_sampling(configure: Configure, tmp_path: Path) -> None:
    weighted = build_task(configure(loss={"balance": True}))
    assert isinstance(weighted.criterion, CrossEntropy) and weighted.criterion.weights is not None
    assert weighted.criterion.weights.numel() == 3
    result = train(
        configure(data={"balanced_sampling": True}, loss={"class_weights": [1.0, 2.0, 3.0]}), tmp_path / "run"
    )
    assert result.complete
    for loss, named in (
        ({"class_weights": [1.0]}, "1 numbers for 3 classes"),
        ({"class_weights": [1.0, 2.0, -1.0]}, "class_weights"),
        ({"class_weights": [1.0, 2.0, 3.0], "balance": True}, "choose one"),
        ({"balance": True, "name": "bce"}, "not of bce"),
    ):
        with pytest.raises(ConfigError, match=named):
            train(configure(loss=loss), tmp_path / "refused")


def test_balanced_sampling_draws_every_class_equally_often(configure: Configure, tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, {"train": 8, "val": 1})
    for image in sorted((root / "train" / "cat").iterdir())[2:]:
        image.unlink()

    def drawn(balanced: bool) -> list[int]:
        task = build_task(configure(data={"root": str(root), "balanced_sampling": balanced}))
        labels = task.train.source.labels
        return sorted(
            Counter(labels[s.index] for batch in task.sampler(batch_size=6) for s in batch).values()
        )

    assert drawn(True) == [6, 6, 6] and drawn(False) == [2, 8, 8]


class Arrays:
    """Images in memory, red, green or blue."""

    classes = ("red", "green", "blue")

    def __init__(self, count: int) -> None:
        self.labels, self.read = [i % 3 for i in range(count)], set[int]()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, background: Any = None) -> Image.Image:
        self.read.add(index)
        return Image.new("RGB", (40, 40), self.classes[self.labels[index]])

    def path(self, index: int) -> str:
        return f"array {index}"


def test_a_data_set_of_ones_own_is_trained_on(configure: Configure, tmp_path: Path) -> None:
    source = Arrays(24)

    def build(config: TrainConfig, world: World, stop: Any = None) -> ClassificationTask:
        task = build_task(config, world)
        assert isinstance(task, ClassificationTask)
        evaluation = ClassificationEvaluation(Arrays(6), task.preprocess, batch_size=4)  # type: ignore[arg-type]
        task.train, task.evaluation = AugmentedDataset(source, task.train.transform, config.seed), evaluation
        return task

    result = train(configure(schedule={"epochs": 1}), tmp_path, build=build)
    assert result.complete and source.read == set(range(24))
    card = read_checkpoint(tmp_path / "best").state["card"]
    assert card["classes"] == ["red", "green", "blue"] and "top1" in result.metrics


def test_a_stream_is_not_balanced(configure: Configure, pets: Path, tmp_path: Path) -> None:
    write_shards(pets, tmp_path / "shards", kind="tar", workers=1, progress=False)
    with pytest.raises(ConfigError, match="tar shards are a stream"):
        build_task(configure(data={"root": str(tmp_path / "shards"), "balanced_sampling": True}))
