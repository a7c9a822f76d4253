"""RetinaNet beside its recorded numbers: batches, padding, pixels, precision, compilation, export."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.models.detection.build import build_detector
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.matcher import IGNORED
from metaformer.models.detection.retinanet import RetinaMaps, RetinaNet
from metaformer.models.detection.structures import Targets

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
TARGETS = [
    Targets(torch.tensor([[3.0, 4, 40, 50], [20, 10, 21, 11]]), torch.tensor([2, 6])),
    Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


def build(config: DetectorConfig = CONFIG, bias: float = -2.0) -> RetinaNet:
    """With so high a bias, even random weights find something."""
    torch.manual_seed(0)
    model = build_detector(config)
    assert isinstance(model, RetinaNet)
    nn.init.constant_(model.head.classification_head.cls_logits.bias, bias)
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)
    return model


@pytest.mark.parametrize(("variant", "millions"), [("s12", 21.7), ("s24", 31.1), ("s36", 40.6)])
def test_published_sizes(variant: str, millions: float) -> None:
    backbone = replace(VARIANTS[f"poolformer_{variant}"], feature_norm="fresh")
    with torch.device("meta"):
        model = build_detector(DetectorConfig(backbone=backbone))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@torch.no_grad()
def test_results_are_inside_best_first_and_not_too_many() -> None:
    model = build().eval()
    for found, (height, width) in zip(
        model(torch.randn(2, 3, 70, 90), image_sizes=[(70, 80), (41, 90)]), [(70, 80), (41, 90)], strict=True
    ):
        assert 0 < len(found) <= 100 and found.masks is None
        assert (found.scores[:-1] >= found.scores[1:]).all() and found.scores[-1] > 0.05
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all() and (found.boxes >= 0).all()
        assert found.boxes[:, 2].max() <= width and found.boxes[:, 3].max() <= height
        assert found.labels.min() >= 0 and found.labels.max() < 7


@torch.no_grad()
def test_a_batchs_results_are_those_of_its_images() -> None:
    model, images = build().eval(), torch.randn(2, 3, 64, 96)
    for whole, image in zip(model(images), images, strict=True):
        (alone,) = model(image[None])
        assert torch.equal(whole.labels, alone.labels)
        assert torch.allclose(whole.boxes, alone.boxes, atol=1e-3)


@torch.no_grad()
def test_boxes_in_the_images_pixels() -> None:
    model, image = build().eval(), torch.randn(1, 3, 64, 96)
    (found,) = model.detect(image)
    (double,) = model.detect(image, original_sizes=[(128, 192)])
    assert torch.equal(double.labels, found.labels)
    assert torch.allclose(double.boxes, found.boxes * 2)


@torch.no_grad()
def test_numbers_that_are_not_finite_are_no_results() -> None:
    model, image = build().eval(), torch.randn(1, 3, 64, 96)
    raw = model.raw(image)
    for worst in (torch.nan, torch.inf, -torch.inf):
        broken = RetinaMaps(raw.logits, tuple(torch.full_like(level, worst) for level in raw.deltas))
        assert len(model.decode(broken, [(64, 96)])[0]) == 0
    lost = RetinaMaps(tuple(torch.full_like(level, torch.nan) for level in raw.logits), raw.deltas)
    assert len(model.decode(lost, [(64, 96)])[0]) == 0


def test_anchors_outside_an_images_padding_teach_nothing() -> None:
    model = build()
    raw = model.raw(torch.randn(2, 3, 64, 96))
    shapes = [(level.shape[2], level.shape[3]) for level in raw.logits]
    truth = model.truth(shapes, TARGETS[::-1], [(64, 96), (30, 32)])
    fine = truth.labels[0].view(2, *shapes[0], 9)
    assert not (fine[0] == IGNORED).any()
    assert (fine[1, 4:] == IGNORED).all() and (fine[1, :, 4:] == IGNORED).all()
    assert not (fine[1, :4, :4] == IGNORED).all() and truth.images.all()


def test_losses_are_single_precision_under_autocast() -> None:
    model, image = build().train(), torch.randn(2, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(image, TARGETS)
        found = model.eval()(image)
    exact = model(image, TARGETS)
    for name, value in losses.items():
        assert value.dtype == torch.float32 and value.item() == pytest.approx(exact[name].item(), rel=0.05)
    losses["loss"].backward()
    assert found[0].boxes.dtype == found[0].scores.dtype == torch.float32


def test_the_loss_learns() -> None:
    model = build(replace(CONFIG, head_dim=None), -4.6).train()
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(12):
        loss = model(image, TARGETS)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


class Raw(nn.Module):
    """What is exported: tensors alone."""

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> RetinaMaps:
        return self.model.raw(x)


@torch.no_grad()
def test_raw_compiles_whole_and_exports_with_sizes_left_open() -> None:
    torch.compiler.reset()
    model = build().eval()
    example = torch.randn(2, 3, 256, 320)
    dims = {0: torch.export.Dim("batch", min=1, max=8), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(Raw(model), (example,), dynamic_shapes=(dims,)).module()
    compiled = torch.compile(model.raw, backend="aot_eager", fullgraph=True)
    for run, image in ((exported, torch.randn(3, 3, 400, 288)), (compiled, example)):
        for ours, expected in zip(run(image), model.raw(image), strict=True):
            assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(ours, expected, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute:UserWarning"
)  # of dynamo, behind a break of the graph
def test_training_and_results_come_out_of_torch_compile() -> None:
    torch.compiler.reset()
    model, image = build().train(), torch.randn(2, 3, 64, 96)
    compiled = torch.compile(model, backend="aot_eager")
    losses = compiled(image, TARGETS)
    assert losses["loss"].item() == pytest.approx(model(image, TARGETS)["loss"].item(), rel=1e-5)
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    for ours, expected in zip(compiled(image), model(image), strict=True):
        assert torch.equal(ours.labels, expected.labels)
