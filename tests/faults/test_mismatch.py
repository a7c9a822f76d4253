"""Item 8: weights of another model are an error that lists the keys; loaded in part on request only."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from faults.case import COMMON, Case
from faults.run import NewRun, Run, Tally
from metaformer.errors import WeightsError
from metaformer.factory import create_model
from metaformer.weights.load import load_weights

SHAPES = re.compile(r"\d+(×\d+)* in the file, \d+(×\d+)* here")
CHANGES: dict[str, dict[str, Any]] = {
    "classes": {"num_classes": 7},
    "channels": {"in_chans": 5},
    "widths": {"dims": (8, 8, 16, 24)},
    "depths": {"depths": (1, 1, 2, 1)},
    "mixers": {"mixers": "sepconv"},
    "norm": {"norm": "batch_norm"},
}


def network(**changes: Any) -> torch.nn.Module:
    fields = {"num_classes": 3, "depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), **changes}
    return create_model("poolformer_n", **fields)


@pytest.mark.parametrize("what", CHANGES)
def test_weights_of_another_model_are_refused(what: str, tmp_path: Path, tally: Tally) -> None:
    file, model = tmp_path / "other.safetensors", network()
    save_file(network(**CHANGES[what]).state_dict(), file)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, file)
    text = str(caught.value)
    unchanged = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    counts = [
        int(n) for n in re.findall(r"(\d+) (?:missing in the file|unknown to the model|misshaped)", text)
    ]
    sized = bool(SHAPES.search(text)) or what in ("depths", "mixers", "norm")
    named = all(len(re.findall(r"\b(?:stem|stages|head)\.", line)) <= 10 for line in text.splitlines())
    ok = bool(counts) and str(file) in text and unchanged and sized and named
    tally("8", "weights of another model refused", ok, text)
    report = load_weights(model, file, strict=False)
    shown = f"{report.fraction:.1%} of the model" in str(report) and 0 < report.fraction <= 1
    tally("8", "weights of another model loaded in part, with the share", shown, report)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(prefix: str, tmp_path: Path, tally: Tally) -> None:
    """Prefixes of DDP and torch.compile, as training scripts save them."""
    file, model = tmp_path / "wrapped.safetensors", network()
    save_file({prefix + name: value.clone() for name, value in network().state_dict().items()}, file)
    report = load_weights(model, file)
    complete = report.complete and report.fraction == 1
    same = all(torch.equal(v, load_file(file)[prefix + name]) for name, v in model.state_dict().items())
    tally("8", "weights with a wrapper's prefix", complete and same)


@pytest.mark.often(0, 3)
def test_a_run_of_another_model_is_not_resumed(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    overrides = COMMON["model"]["overrides"]
    model = (
        {"overrides": {**overrides, "dims": [64, 128, 192, 128]}},
        {"overrides": {**overrides, "depths": [1, 2, 1, 1]}},
        {"mixers": "sepconv"},
    )[attempt]
    run = new_run()
    shutil.copytree(reference.path, run.path)
    end = run.go(model=model, fork=True)
    named = "another model" in end.error and any(
        reason in end.error for reason in ("in the file", "unknown to the model")
    )
    same = run.fingerprint() == reference.fingerprint()
    tally("8", f"{case.task}: --resume into another model", end.status == 1 and named and same, end.text)
