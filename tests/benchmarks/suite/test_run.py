"""Running the suite: contenders, processes, measurements."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.suite import ceilings, process, run
from benchmarks.suite.ceilings import Copy
from benchmarks.suite.contender import FORMS, Contender, Form, build, prepare
from benchmarks.suite.measuring import measure_row, one_line
from benchmarks.suite.process import Order, row_of, run_row
from benchmarks.suite.profile import Profile
from benchmarks.suite.result import Outcome, RowResult
from benchmarks.suite.rows import TABLE, Claim, Row
from benchmarks.suite.run import SuiteConfig, choose, run_suite
from metaformer.bench.timing import Machine, Timing, TrainingStep, instructions
from metaformer.errors import ConfigError, OutputError, UnknownName
from metaformer.factory import create_model
from metaformer.ops import cpp

ROW = Row(model="poolformer_n", device="cpu", batch=2, size=32, claims=())
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_name_is_side_forms_and_conditions() -> None:
    found = Contender.read("timm channels_last compiled bf16 384", ROW)
    assert found == Contender("timm", ("channels_last", "compiled"), "bf16", 384)
    assert Contender.read("ours eager", ROW) == Contender("ours", ("eager",), "fp32", 32)


@pytest.mark.parametrize(("name", "near"), [("our eager", "ours"), ("ours compild", "compiled")])
def test_unknown_parts_are_refused(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=near):
        Contender.read(name, ROW)


def test_inference_is_compared_with_the_plain_network() -> None:
    exact, rounded = prepare("ours eager", ROW), prepare("ours channels_last bf16", ROW)
    assert exact.difference is not None and exact.difference < 1e-5
    assert rounded.difference is not None and 0 < rounded.difference < 0.1
    assert rounded.images.dtype == torch.bfloat16
    assert rounded.images.is_contiguous(memory_format=torch.channels_last)
    assert prepare("ours eager 64", ROW).images.shape == (2, 3, 64, 64)


def test_a_form_with_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(form: Form) -> Form:
        return Form(nn.Sequential(form.network, nn.Softmax(1)), form.images)

    monkeypatch.setitem(FORMS, "halved", halved)
    with pytest.raises(ConfigError, match="logits"):
        prepare("ours halved", ROW)


def test_training_is_a_step() -> None:
    row = Row(model="poolformer_n", device="cpu", mode="training", batch=2, size=32, claims=())
    ready = prepare("ours eager", row)
    assert isinstance(ready.module, TrainingStep) and ready.module.model.training
    assert next(ready.module.model.parameters()).grad is not None


def test_ceilings_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings.COPIED, "cpu", 1024)
    ready = prepare("ceiling copy bf16", ROW)
    assert isinstance(ready.module, Copy) and ready.module.a.dtype == torch.bfloat16


def test_the_same_weights_each_time() -> None:
    first, second = (build("ours", "poolformer_n", 32).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_missing_networks_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="timm"):
        build("tim", "poolformer_s12", 32)
    with pytest.raises(ConfigError, match="timm has no cyclemlp_b1"):
        build("timm", "cyclemlp_b1", 32)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        build("timm", "poolformer_s12", 32)


def test_scales_and_biases_are_perturbed() -> None:
    network = build("ours", "poolformer_n", 32)
    scales = [p for name, p in network.named_parameters() if "layer_scale" in name]
    assert scales and all(scale.std() > 0.05 for scale in scales)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 4)).eval()


def same(form: Form) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(form.network(form.images), network()(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["eager", "channels_last"])
def test_layouts(name: str) -> None:
    form = FORMS[name](Form(network(), IMAGES))
    layout = torch.contiguous_format if name == "eager" else torch.channels_last
    assert form.images.is_contiguous(memory_format=layout)
    same(form)


def test_our_networks_recompute_their_mlps() -> None:
    form = FORMS["recompute_mlp"](Form(create_model("poolformer_n"), torch.randn(1, 3, 32, 32)))
    assert [stage.grad_checkpointing for stage in form.network.stages] == ["mlp"] * 4  # type: ignore[union-attr]


def test_autocast_multiplies_in_bfloat16() -> None:
    (row,) = [row for row in TABLE if row.subject == "autocast"]
    contender = Contender.read("ours autocast", row)
    assert (contender.dtype, contender.multiplies) == ("fp32", "bf16")
    form = FORMS["autocast"](Form(network(), IMAGES))
    assert form.network(form.images).dtype == torch.bfloat16
    assert {value.dtype for value in form.network.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compiled", "frozen", "aoti"])
def test_compilers(name: str) -> None:
    same(FORMS[name](FORMS["channels_last"](Form(network(), IMAGES))))


class Network(nn.Module):
    """A class whose objects share one method."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def operations(form: Form) -> list[str]:
    """Operations of a second run; the parameters require gradients, as timm's do."""
    with torch.inference_mode():
        form.network(form.images)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            form.network(form.images)
    return [event.name for event in profiler.events() or ()]


@pytest.mark.slow
def test_frozen_does_not_reuse_code_compiled_without_freezing() -> None:
    first, second = (FORMS["channels_last"](Form(Network(), IMAGES)) for _ in range(2))
    assert "aten::convolution" in operations(FORMS["compiled"](first))
    assert "mkldnn::_convolution_pointwise" in operations(FORMS["frozen"](second))


@pytest.mark.slow
def test_weights_are_constants_ahead_of_time() -> None:
    names = operations(FORMS["aoti"](Form(network(), IMAGES)))
    assert names and not any("convolution" in name for name in names), "oneDNN's, on packed weights"


def test_openvino() -> None:
    same(FORMS["openvino"](Form(network(), IMAGES)))


def test_a_missing_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install openvino"):
        FORMS["openvino"](Form(network(), IMAGES))


CLAIM = Claim("any", ("ours eager", "ours broken"), ("ours channels_last bf16", "timm eager"), 1.0)
MEASURED_ROW = Row(model="poolformer_n", device="cpu", batch=2, size=32, claims=(CLAIM,))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ceilings, and a form that fails."""

    def broken(form: Form) -> Form:
        raise RuntimeError("the compiler\n  said so")

    monkeypatch.setitem(FORMS, "broken", broken)
    monkeypatch.setitem(ceilings.SIDE, "cpu", 64)
    monkeypatch.setitem(ceilings.POSITIONS, "cpu", (1, 4, 4))
    monkeypatch.setitem(ceilings.COPIED, "cpu", 1 << 16)


def test_a_failing_contender_is_left_out() -> None:
    events: list[Mapping[str, Any]] = []
    result = measure_row(MEASURED_ROW, 2, report=events.append)
    ours, broken, other = (result[name] for name in (*CLAIM.ours, CLAIM.theirs[0]))
    assert ours.timing is not None and len(ours.timing.seconds) == 2 and ours.prepared
    assert broken.timing is None and broken.failure == "RuntimeError: the compiler said so"
    assert other.timing is not None and other.dtype == "bf16"
    assert ours.traffic is not None and other.traffic == ours.traffic / 2 and other.work == ours.work
    assert "timm has no poolformer_n" in result["timm eager"].failure
    assert {"failed": "ours broken", "reason": broken.failure} in events
    assert events[-1] == {"round": 2, "of": 2}
    assert result.gemm_share(ours) and result.gemm_share(other) and result.copy_share(ours)
    assert ours.profile is not None and ours.profile.rest is not None and other.profile is None
    assert result.machine is not None and result.machine.device.startswith("cpu")


def test_contenders_are_left_out_on_request() -> None:
    result = measure_row(MEASURED_ROW, 1, skip={"ours eager": "it crashed"}, ceilings=False)
    assert result["ours eager"].failure == "it crashed"
    assert {outcome.name for outcome in result.outcomes} == set(MEASURED_ROW.contenders)


def test_the_fastest_of_each_claim_is_profiled() -> None:
    claims = (Claim("a", ("ours eager", "ours eager 224"), ()), Claim("b", ("ours eager 224",), ()))
    result = measure_row(replace(MEASURED_ROW, claims=claims), 2, ceilings=False)
    assert all(outcome.profile is not None for outcome in result.outcomes)
    result = measure_row(replace(MEASURED_ROW, claims=claims[:1]), 2, ceilings=False)
    assert [outcome.name for outcome in result.outcomes if outcome.profile] == ["ours eager"], "the small one"


def test_training_has_memory_and_three_times_the_work() -> None:
    claims = (Claim("any", ("ours eager",), ()),)
    inference, training = (
        measure_row(
            Row(model="poolformer_n", device="cpu", mode=mode, batch=2, size=32, claims=claims),  # type: ignore[arg-type]
            1,
            ceilings=False,
        )["ours eager"]
        for mode in ("inference", "training")
    )
    assert training.memory and inference.memory and training.memory > 2 * inference.memory
    assert training.profile and training.profile.products > 0
    assert training.work and inference.work and training.work == 3 * inference.work


def test_a_row_without_contenders() -> None:
    result = measure_row(MEASURED_ROW, 1, skip=dict.fromkeys(MEASURED_ROW.contenders, "no"), ceilings=False)
    assert all(outcome.failure == "no" for outcome in result.outcomes)


def test_errors_in_one_line() -> None:
    assert one_line(ConfigError("so\n  it is")) == "so it is"
    assert one_line(ValueError()) == "ValueError" and len(one_line(ValueError("x" * 999))) == 300


SENT_ROW = Row(
    model="poolformer_n",
    device="cpu",
    batch=1,
    size=32,
    claims=(Claim("any", ("ours eager",), ("ours channels_last",)),),
)
CRASH = """
import json, os, sys
order = json.loads(sys.stdin.readline())
for name in ("ours eager", "ours channels_last"):
    print(json.dumps({"preparing": name}), flush=True)
    if name not in order["skip"]:
        print("a bad instruction", file=sys.stderr, flush=True)
        os.abort()
values = {"timing": None, "failure": "none"}
outcomes = [{"name": name, **values, "failure": order["skip"][name]} for name in order["skip"]]
machine = {"device": "d", "threads": 1, "pytorch": "p", "python": "q", "operations": "o"}
print(json.dumps({"outcomes": outcomes, "machine": machine}))
"""


def order(caches: Path, limit: float = 100) -> Order:
    return Order(rounds=1, threads=1, limit=limit, caches=caches, temporary=caches)


@pytest.mark.usefixtures("forked_workers")
def test_a_whole_row(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    result = run_row(SENT_ROW, order(tmp_path), tmp_path / "log", events.append)
    assert all(result[name].timing is not None for name in SENT_ROW.contenders), result.failure
    assert result["ceiling product fp32"].timing is not None
    assert result["ours eager"].profile is not None
    assert result.machine is not None and result.machine.threads == 1
    assert events[-1] == {"round": 1, "of": 1}


def test_a_crashing_contender_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", CRASH))
    result = run_row(SENT_ROW, order(tmp_path), tmp_path / "log", lambda event: None)
    for name in SENT_ROW.contenders:
        assert "killed by signal 6" in result[name].failure and "a bad instruction" in result[name].failure


def test_a_process_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    result = run_row(SENT_ROW, order(tmp_path), tmp_path / "log", lambda event: None)
    assert "ended with status 1" in result.failure and "no torch here" in result.failure


@pytest.mark.usefixtures("forked_workers")
def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """Its standard input ends while it still measures."""
    values = {"row": asdict(SENT_ROW), "rounds": 10**6, "threads": 1, "skip": {}}
    child = subprocess.Popen(
        process.WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        print(json.dumps(values), file=child.stdin, flush=True)
        assert json.loads(child.stdout.readline()) == {"preparing": "ours eager"}
        child.stdin.close()
        assert child.wait(timeout=60) == 1


def test_a_row_over_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", "import time; time.sleep(100)"))
    result = run_row(SENT_ROW, order(tmp_path, limit=1), tmp_path / "log", lambda event: None)
    assert "longer than 1 s" in result.failure


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_rows_survive_json(row: Row) -> None:
    assert row_of(json.loads(json.dumps(asdict(row)))) == row


MACHINE = Machine("cpu: ABACUS(R) 9", 2, "2.15", "3.13", "plain PyTorch", "avx2 avx512f", "AVX2")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of rows in the order of measurement; ours takes 1 s, everything else 2."""
    names: list[str] = []

    def run_row(row: Row, order: Any, log: Path, report: Callable[[Any], None]) -> RowResult:
        names.append(row.name)
        report({"prepared": "ours eager", "seconds": 1})
        outcomes = (
            Outcome(
                n,
                Timing((1.0 if "ours" in n else 2.0,) * 3, 1),
                pixels=1,
                profile=Profile(0.5, 0.3, 0.2, 1.0, ("pool",)) if n == "ours eager" else None,
            )
            for n in row.contenders
        )
        return RowResult(row, tuple(outcomes), MACHINE)

    monkeypatch.setattr(run, "run_row", run_row)
    return names


def test_rows_by_pattern_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "instructions", lambda: ("avx512_bf16",))
    everything = choose(SuiteConfig(device="cpu"))
    assert all(row.device == "cpu" for row in everything)
    some = choose(SuiteConfig(device="cpu", rows="*-training-*"))
    assert 0 < len(some) < len(everything) and all(row.mode == "training" for row in some)
    assert len(choose(SuiteConfig(device="cpu", grid=True, rows="caformer"))) == 12
    with pytest.raises(UnknownName, match="resnet"):
        choose(SuiteConfig(device="cpu", rows="resnet"))


def test_quick_rows_are_few(measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path / "home"))
    quick = SuiteConfig(device="cpu", quick=True)
    assert len(choose(quick)) < len(choose(SuiteConfig(device="cpu")))
    names = {name for row in choose(quick) for name in row.contenders}
    assert "ours optimized" in names and "timm channels_last frozen" in names
    assert not any(form in name for name in names for form in ("aoti", "openvino", "autotuned"))
    run_suite(quick, tmp_path / "out", log=lambda line: None)
    assert measured == [row.name for row in choose(quick)]
    (caches,) = (tmp_path / "home" / "bench-suite").iterdir()
    assert torch.__version__ in caches.name and caches.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="quick"):
        SuiteConfig(quick=True, grid=True)


@pytest.mark.parametrize(("kept_to", "processor"), [("avx2", "avx512_bf16"), ("all", "avx512f")])
def test_fewer_instructions_leave_out_bfloat16(
    kept_to: str, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "instructions", lambda: (processor,))
    rows = choose(SuiteConfig(device="cpu", instructions=kept_to))
    words = " ".join(f"{row.dtype} {' '.join(row.contenders)}" for row in rows).split()
    assert rows and not {"bf16", "autocast"} & set(words)
    assert any(row.model == "cyclemlp_b1" and row.mode == "inference" for row in rows), (
        "its other claims stay"
    )
    with pytest.raises(UnknownName, match="avx2"):
        SuiteConfig(instructions="avx")


AVX2_ROW = replace(SENT_ROW, model="poolformer_n", claims=(Claim("any", ("ours optimized",), ()),))


@pytest.mark.skipif("avx2" not in instructions(), reason="no AVX2")
def test_a_process_is_kept_to_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = replace(order(tmp_path), kept_to="avx2")
    result = run_row(AVX2_ROW, limited, tmp_path / "log", lambda event: None)
    assert result.machine is not None, result.failure
    assert result.machine.level == "AVX2"
    if cpp.load() is not None:
        assert result.machine.operations == "C++ kernels (AVX2)"
        profile = result["ours optimized"].profile
        assert profile is not None and "pool" in "".join(profile.kernels)


@pytest.mark.parametrize("field", ["rounds", "threads", "limit"])
def test_numbers_below_one_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SuiteConfig(**{field: 0})


def test_files_agree(measured: list[str], tmp_path: Path) -> None:
    lines: list[str] = []
    config = SuiteConfig(device="cpu", rows="cpu-poolformer_s12-inference-fp32", rounds=3)
    report = run_suite(config, tmp_path / "out", log=lines.append)
    assert measured == [row.name for row in choose(config)] and len(measured) == 3
    values = json.loads((tmp_path / "out" / "suite.json").read_text())
    page = (tmp_path / "out" / "suite.md").read_text()
    assert (tmp_path / "out" / "suite.png").stat().st_size > 1000
    assert page == report.text() and report.table() in page and report.summary() in page
    assert "cpu: ABACUS(R) 9 (avx2 avx512f; PyTorch at AVX2), 2 threads, PyTorch 2.15" in report.summary()
    assert "Kernels of our best contenders: pool." in report.summary()
    assert values["rows"][0]["machine"] == asdict(MACHINE)
    for claim in values["claims"]:
        (line,) = (
            line
            for line in page.splitlines()
            if line.startswith(f"| {claim['row']} | {claim['claim']['title']} |")
        )
        assert f"| {claim['minima']:.3f} | {claim['median']:.3f} [" in line and claim["verdict"] in line
    assert len(values["claims"]) == sum(len(row.claims) for row in choose(config))
    assert any("row 2 of 3" in line and "to go" in line for line in lines)
    assert any("ready after 1 s" in line for line in lines) and "2.000 by minima" in "".join(lines)
    assert any("ours eager: products 50%, passes over memory 30%" in line for line in lines)
    (eager,) = (each for each in values["rows"][0]["contenders"] if each["name"] == "ours eager")
    assert eager["profile"]["products"] == 0.5 and "Profiles of our best" in page


def test_a_directory_that_cannot_be_written_to(measured: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        run_suite(SuiteConfig(device="cpu"), tmp_path / "file")
    assert not measured
