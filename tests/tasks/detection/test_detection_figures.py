import numpy as np

from metaformer.tasks.detection.metrics import figures


def test_each_figure_is_read_from_its_place() -> None:
    draw = np.random.default_rng(0)
    precision, recall = draw.random((10, 101, 2, 4, 3)), draw.random((10, 2, 4, 3))
    found = figures(precision, recall, ["ant", "bee"], [3, 1], [5, 0])
    assert found.ap == precision[..., 0, 2].mean() and found.ap75 == precision[5, ..., 0, 2].mean()
    assert found.ap_large == precision[..., 3, 2].mean() and found.ar_10 == recall[..., 0, 1].mean()
    assert found.ar_small == recall[..., 1, 2].mean() and found.stats[10] == found.ar_medium
    bee = found.per_class[1]
    assert (bee.name, bee.objects, bee.found, found.objects) == ("bee", 1, 0, 4)
    assert bee.ap50 == precision[0, :, 1, 0, 2].mean() and bee.ar == recall[:, 1, 0, 2].mean()


def test_what_does_not_exist_is_none() -> None:
    precision, recall = np.full((10, 101, 2, 4, 3), -1.0), np.full((10, 2, 4, 3), -1.0)
    precision[:, :, 0], recall[:, 0] = 0.5, 0.25
    found = figures(precision, recall, ["ant", "bee"], [1, 0], [1, 0])
    assert found.ap == 0.5 and found.per_class[0].ar == 0.25 and found.per_class[1].ap is None
