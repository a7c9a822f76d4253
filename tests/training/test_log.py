from pathlib import Path

from metaformer.checkpoint.run_dir import read_log
from metaformer.training.log import MetricsLog


def test_lines_are_appended_and_a_resumed_run_takes_back_what_it_does_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, print) as log:
        for step in (1, 2, 3):
            log.write("train", step, 0, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "tra')  # killed as it wrote
    with MetricsLog(tmp_path, print) as log:
        log.write("resume", 2, 0)
        log.write("train", 3, 0, {"loss": 30.0})
    lines = read_log(tmp_path)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1), ("train", 2), ("resume", 2), ("train", 3),
    ]  # fmt: skip
    assert lines[-1]["loss"] == 30.0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_tensorboard_holds_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, print) as log:
        log.write("eval", 7, 1, {"top1": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/top1")] == [(7, 0.5)]


def test_without_tensorboard_a_line_says_how_to_get_it(tmp_path: Path) -> None:
    import sys

    kept = {
        name: module for name, module in sys.modules.items() if name.startswith("torch.utils.tensorboard")
    }
    for name in kept:
        del sys.modules[name]
    sys.modules["tensorboard"], before = None, sys.modules.get("tensorboard")  # type: ignore[assignment]
    told: list[str] = []
    try:
        with MetricsLog(tmp_path, told.append) as log:
            log.write("train", 1, 0, {"loss": 1.0})
    finally:
        if before is None:
            del sys.modules["tensorboard"]
        else:
            sys.modules["tensorboard"] = before
        sys.modules.update(kept)
    assert len(told) == 1 and "pip install 'metaformer[log]'" in told[0]
    assert read_log(tmp_path)[0]["loss"] == 1.0


def test_a_line_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    lines = b'{"kind": "train", "step": 1}', b"\xff\xfe", b'{"kind": "eval", "step": 2}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
