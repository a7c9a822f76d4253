import random

import numpy as np
import torch

from metaformer.checkpoint.random_state import random_state, set_random_state

CPU = torch.device("cpu")


def draws() -> list[float]:
    torch_draws = [float(torch.rand(())), float(torch.randn(()))]
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        *torch_draws,
    ]


def test_every_generator_goes_on_where_it_was() -> None:
    draws()  # normal numbers come in pairs: the second of a pair is part of the state
    state = random_state(CPU)
    expected = draws()
    assert draws() != expected
    set_random_state(state, CPU)
    assert draws() == expected
