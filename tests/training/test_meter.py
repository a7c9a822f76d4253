import time

import torch

from metaformer.training.meter import Meter, peak_memory


def test_figures_are_means_over_the_steps_that_have_them() -> None:
    meter = Meter()
    meter.add({"loss": 1.0, "grad_norm": 4.0, "lr": 0.5})
    meter.add({"loss": 3.0, "lr": 0.5})  # a step that overflowed has no norm
    time.sleep(0.01)
    meter.waited = meter.seconds / 2
    figures = meter.figures(ranks=1)
    assert meter.steps == 2
    assert (figures["loss"], figures["grad_norm"], figures["lr"]) == (2.0, 4.0, 0.5)
    assert 0 < figures["data_wait"] <= 0.5


def test_memory_is_that_of_this_process_in_gib() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(1 << 28, dtype=torch.uint8)
    assert 0.05 < before < 64
    assert peak_memory(torch.device("cpu")) >= max(before, held.numel() / 2**30)
