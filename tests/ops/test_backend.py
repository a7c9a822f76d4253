import importlib.util

import pytest
import torch

from metaformer.errors import ConfigError
from metaformer.ops import backend


def test_a_cpu_runs_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not backend.triton_usable(torch.zeros(1, 2, 3, 3))


def test_the_environment_forces_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_OPS", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not backend.triton_usable(torch.zeros(1, 2, 3, 3))
    assert backend.describe() == "plain PyTorch: METAFORMER_OPS asks for it"


def test_an_unknown_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_OPS", "refrence")
    with pytest.raises(ConfigError, match="did you mean reference"):
        backend.triton_usable(torch.zeros(1, 2, 3, 3))
    with pytest.raises(ConfigError, match="METAFORMER_OPS"):
        backend.describe()


def test_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAFORMER_OPS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.describe() == "plain PyTorch: no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert backend.describe() == "plain PyTorch: the kernels need compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backend.describe() == "plain PyTorch: Triton is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert backend.describe() == "Triton kernels"


def test_autocast_chooses_the_type_but_for_float64() -> None:
    x = torch.zeros(1)
    assert backend.working_dtype(x) == torch.float32
    with backend.without_autocast(x):
        assert backend.working_dtype(x) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backend.working_dtype(x) == torch.bfloat16
        assert backend.working_dtype(x.double()) == torch.float64
        with backend.without_autocast(x):
            assert backend.working_dtype(x) == torch.float32


def test_a_compiler_takes_the_choice_as_it_is() -> None:
    def choose(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if backend.triton_usable(x) else x - 1

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2)).tolist() == choose(torch.zeros(2)).tolist()
