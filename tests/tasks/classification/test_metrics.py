import torch

from metaformer.tasks.classification.metrics import TopK


def test_counts_each_k_over_all_batches() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    labels = torch.tensor([1, 1, 2, 2])
    topk = TopK((1, 2))
    for part in (slice(0, 3), slice(3, 4)):
        topk.update(scores[part], labels[part])
    assert topk.result() == {1: 2 / 4, 2: 3 / 4}


def test_k_beyond_the_classes_counts_every_image() -> None:
    topk = TopK((1, 5))
    topk.update(torch.rand(7, 3), torch.zeros(7, dtype=torch.int64))
    assert topk.result()[5] == 1.0


def test_no_images_give_zero() -> None:
    assert TopK((1,)).result() == {1: 0.0}
