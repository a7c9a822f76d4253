"""The command line: whole jobs in small, and one clear line for each kind of bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.bench.catalog import catalog
from metaformer.cli import COMMANDS, main
from metaformer.cli.train import resolve
from metaformer.factory import create_model
from metaformer.mixers import MIXERS
from metaformer.recipes import RECIPES

TINY = "--model.overrides={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}"
QUICK = [
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.workers=0",
    "--schedule.epochs=1",
    "--runtime.threads=1",
]
COLORS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 40, 20)}


def write_images(root: Path, split: str, count: int, classes: tuple[str, ...] = tuple(COLORS)) -> None:
    rng = np.random.default_rng(len(split))
    for name in classes:
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 30, (40, 40, 3)) + np.array(COLORS[name])
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root, "train", 8)
    write_images(root, "val", 4)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "colors"
    words = ["train", "demo/classify", f"--data.root={data}", f"--out={out}", TINY, *QUICK]
    assert main([*words, "--schedule.epochs=3", "--seed=3", "--optim.lr=0.01"]) == 0
    return out


Tell = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Run a command and return status, output and what was complained about."""

    def run_and_read(argv: list[str]) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run_and_read


def complaint(result: tuple[int, str, str]) -> str:
    """The one line that a failed command leaves behind."""
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("metaformer: error: ")]
    assert status in (1, 2) and len(lines) == 1, err
    assert "Traceback" not in err and lines[0] == err.splitlines()[-1]
    return lines[0]


def test_help_is_quick_and_needs_no_torch() -> None:
    script = (
        "import sys; from metaformer.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    for name, verb in COMMANDS.items():
        assert name in done.stdout and verb.example in done.stdout


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_verb_has_help_with_an_example(verb: str, tell: Tell) -> None:
    status, out, _ = tell([verb, "--help"])
    assert status == 0 and "usage: metaformer " + verb in out and "example" in out


def test_version(tell: Tell) -> None:
    assert tell(["--version"])[1].startswith("metaformer 0.")


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metaformer", "tarin"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "did you mean train" in done.stderr


def test_examples_can_be_parsed() -> None:
    """The words after each verb are options that it has."""
    for verb in COMMANDS.values():
        words = verb.example.split()
        assert words[0] == "metaformer" and words[1] in COMMANDS


def test_list(tell: Tell) -> None:
    _, out, _ = tell(["list"])
    for entry in catalog():
        assert entry.name in out
    assert "cyclemlp_t: weights were published without code" in out
    rows = json.loads(tell(["list", "caformer_b36", "--json"])[1])
    assert {row["top1"] for row in rows} == {85.5, 86.4, 87.4, 88.1, None}
    assert all(row["params"] == 98753614 for row in rows if row["classes"] == 1000)


def test_list_recipes_and_mixers(tell: Tell) -> None:
    assert {row["recipe"] for row in json.loads(tell(["list", "--recipes", "--json"])[1])} == set(RECIPES)
    assert {row["mixer"] for row in json.loads(tell(["list", "--mixers", "--json"])[1])} == set(MIXERS)
    assert "size=3" in tell(["list", "--mixers", "pooling"])[1]
    networks = json.loads(tell(["list", "--segmenters", "--json"])[1])
    assert [row["miou"] for row in networks] == [37.07, 40.36, 41.81, 42.35, 42.76]
    for what in ("--recipes", "--mixers", "--segmenters"):
        assert tell(["list", what, "nonsense"])[0] == 1


def test_training_leaves_a_run_directory(run: Path, data: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config = config.get("config", config)
    assert config["optim"]["lr"] == 0.01 and config["seed"] == 3 and config["data"]["root"] == str(data)
    assert (run / "metrics.jsonl").read_text().count("\n") >= 3
    assert (run / "best").exists() and (run / "report.html").stat().st_size > 1000


def test_a_run_is_not_overwritten_but_resumed(run: Path, data: Path, tell: Tell, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    words = [
        "train",
        "demo/classify",
        f"--data.root={data}",
        f"--out={copy}",
        TINY,
        *QUICK,
        "--seed=3",
        "--optim.lr=0.01",
    ]
    assert "resume" in complaint(tell([*words, "--schedule.epochs=3"]))
    before = (copy / "metrics.jsonl").read_text()
    assert main([*words, "--schedule.epochs=4", "--resume=auto"]) == 0
    after = (copy / "metrics.jsonl").read_text()
    assert after.startswith(before) and len(after) > len(before)


def test_evaluate(run: Path, tell: Tell, tmp_path: Path) -> None:
    status, out, _ = tell(["evaluate", str(run), "--workers=0", f"--json={tmp_path / 'report.json'}"])
    assert status == 0 and "top-1" in out and "green" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 12 and report["top1"] > 0.6, "three plain colors are learned in a few steps"
    status, more, _ = tell(["evaluate", str(run), "--workers=0", "--flip", "--crops=5", "--image-size=64"])
    assert status == 0 and more != out


def test_evaluate_with_subset_and_real_labels(run: Path, tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("blue\nred\n")
    status, out, _ = tell(["evaluate", str(run), "--workers=0", f"--subset={tmp_path / 'two.txt'}"])
    assert status == 0 and "images   8" in out
    (tmp_path / "real.json").write_text(json.dumps([[0, 1, 2]] * 12))
    status, out, _ = tell(["evaluate", str(run), "--workers=0", f"--real={tmp_path / 'real.json'}"])
    assert status == 0 and "ReaL     100.00%" in out


def test_predict(run: Path, data: Path, tell: Tell, tmp_path: Path) -> None:
    inputs = [str(data / "val" / "red"), str(data / "val" / "blue" / "*.png")]
    status, out, _ = tell(["predict", str(run), *inputs])
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(lines) == 8 and set(lines[0]["labels"]) == set(COLORS)
    for name in ("found.csv", "found.jsonl", "folder"):
        assert main(["predict", str(run), *inputs, f"--out={tmp_path / name}", "--top-k=1"]) == 0
        assert (tmp_path / name).exists()
    assert (tmp_path / "found.csv").read_text().count("\n") == 9
    assert main(["predict", str(run), inputs[0], f"--out={tmp_path / 'drawn'}", "--images"]) == 0
    assert len(list((tmp_path / "drawn" / "images").iterdir())) == 4


def test_objects_from_the_demo_data_to_results(tell: Tell, tmp_path: Path) -> None:
    assert main(["data", "demo", str(tmp_path / "demo"), "--copies=1", "--scenes", "4", "2"]) == 0
    data, run = tmp_path / "demo" / "detect", tmp_path / "run"
    words = ["train", "demo/detect", f"--data.root={data}", f"--out={run}", TINY, "--schedule.epochs=1"]
    small = ["--data.batch_size=2", "--data.workers=0", "--detect.fpn_dim=16", "--runtime.threads=1"]
    assert main([*words, *small, "--evaluate.every=1"]) == 0
    status, out, _ = tell(["evaluate", str(run), "--workers=0", f"--json={tmp_path / 'report.json'}"])
    assert status == 0 and "2 images" in out and "masks" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 2 and 0 <= report["mask_ap"] <= 1 and len(report["classes"]) == 10
    found = tmp_path / "found"
    assert main(["predict", str(run), str(data / "val2017"), f"--out={found}", "--coco", "--score=0"]) == 0
    assert (found / "coco.json").exists() and (found / "predictions.jsonl").exists()
    assert "crops: mask_rcnn_poolformer_n finds objects" in complaint(
        tell(["evaluate", str(run), "--crops=5"])
    )


def test_finetune_from_a_published_format_with_another_class_count(
    data: Path, tell: Tell, tmp_path: Path
) -> None:
    torch.save(create_model("poolformer_n").state_dict(), tmp_path / "ours.pth")
    assert main(["convert", str(tmp_path / "ours.pth"), str(tmp_path / "orig.pth"), "--to=poolformer"]) == 0
    assert any(key.startswith("network.") for key in torch.load(tmp_path / "orig.pth", weights_only=True))
    words = ["train", "finetune", "--model.name=poolformer_n", f"--model.checkpoint={tmp_path / 'orig.pth'}"]
    words += [f"--data.root={data}", f"--out={tmp_path / 'run'}", *QUICK, "--schedule.warmup_epochs=0"]
    assert main(words) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--workers=0"]) == 0


def test_own_mixer_by_name(data: Path, tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(
        "from torch import Tensor, nn\n"
        "from metaformer.mixers import MIXERS\n\n"
        "@MIXERS.register('rows')\n"
        "class Rows(nn.Module):\n"
        "    def __init__(self, dim: int, share: float = 0.5) -> None:\n"
        "        super().__init__()\n"
        "        self.share = share\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        "        return self.share * x.mean(3, keepdim=True).expand_as(x)\n"
    )
    own, out = f"--import={tmp_path / 'rows.py'}", tmp_path / "run"
    words = ["train", "demo/classify", f"--data.root={data}", f"--out={out}", TINY, *QUICK]
    words.append("--model.mixers=[rows, rows(share=0.25), pooling, rows]")
    assert main([*words, own]) == 0
    assert "rows(share=0.25)" in (out / "config.json").read_text()
    again = [sys.executable, "-m", "metaformer", "evaluate", str(out), "--workers=0"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--import" in done.stderr, "a checkpoint brings no code along"
    assert subprocess.run([*again, own], timeout=120).returncode == 0
    assert main(["bench", "poolformer_n", "--counts", own, "--mixers", "rows"]) == 0


def test_convert_says_what_it_did(tell: Tell, tmp_path: Path) -> None:
    torch.save(create_model("cyclemlp_b1").state_dict(), tmp_path / "a.pth")
    status, out, _ = tell(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--to=cyclemlp"])
    assert status == 0 and "cyclemlp_b1" in out and (tmp_path / "b.pth").exists()


def test_bench(tell: Tell, tmp_path: Path) -> None:
    words = ["bench", "poolformer_n", "--size=32", "--rounds=2", "--threads=1", "--by=stage"]
    status, out, _ = tell([*words, "--against=cyclemlp_b1", f"--json={tmp_path / 'b.json'}"])
    assert status == 0 and "times as fast as cyclemlp_b1" in out and "stages.2" in out
    values = json.loads((tmp_path / "b.json").read_text())
    assert len(values["ratios"]["poolformer_n"]["pairs"]) == 2 and values["machine"]["threads"] == 1
    assert (
        json.loads(tell(["bench", "caformer_s18", "--counts", "--json=-"])[1])["models"][0]["params"]
        == 26341656
    )


def test_data_demo(tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = tell(["data", "demo", str(tmp_path / "demo"), "--copies=1", "--scenes", "2", "1"])
    assert status == 0 and str(tmp_path / "demo" / "classify") in out
    assert len(list((tmp_path / "demo" / "classify" / "val").iterdir())) == 10


# --- configuration


def test_yaml_then_words_change_a_recipe(tmp_path: Path) -> None:
    recipe = RECIPES["imagenet/caformer_s18"]
    assert resolve(recipe, []) == recipe()
    (tmp_path / "own.yaml").write_text(
        "optim: {lr: 0.5, clip: 1}\nmodel:\n  mixers: [pooling, pooling, attention, attention]\n"
    )
    config = resolve(recipe, [str(tmp_path / "own.yaml"), "--optim.lr", "2e-3", "--ema.decay=0.9"])
    assert config.optim.lr == 2e-3 and config.optim.clip == 1.0 and config.optim.name == "lamb"
    assert config.ema.decay == 0.9 and config.model.drop_path_rate == 0.15
    assert config.model.mixers == ["pooling", "pooling", "attention", "attention"]
    assert resolve(recipe, ["--model.mixers", "pooling(size=5)"]).model.mixers == "pooling(size=5)"
    assert resolve(recipe, ["--augment.auto_augment=null"]).augment.auto_augment is None


def test_printed_configuration_reads_back(tell: Tell, tmp_path: Path) -> None:
    status, out, _ = tell(["train", "imagenet/cyclemlp_b2", "--optim.lr=0.25", "--print_config"])
    (tmp_path / "own.yaml").write_text(out)
    assert status == 0
    config = resolve(RECIPES["imagenet/poolformer_s12"], [str(tmp_path / "own.yaml")])
    assert config == resolve(RECIPES["imagenet/cyclemlp_b2"], ["--optim.lr=0.25"])


def test_the_line_that_goes_on_with_a_run_says_so_once() -> None:
    from metaformer.cli.train import _command

    going_on = "metaformer train finetune --out 'my run' --resume auto"
    for resume in ([], ["--resume", "auto"], ["--resume=auto"], ["--resume", "a/step_1"]):
        assert _command(["finetune", *resume, "--out", "my run"]) == going_on


def test_help_of_a_recipe_shows_its_values_and_what_fields_mean(tell: Tell) -> None:
    status, out, _ = tell(["train", "imagenet/caformer_b36", "--help"])
    text = " ".join(out.split())
    assert status == 0 and "Published: top-1 85.5 %" in text and "default: 0.008" in text
    assert "Peak learning rate" in text and "--import FILE.py" in text and "--resume" in text


def test_a_configuration_cannot_name_code_to_run(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for key in ("import", "file"):
        (tmp_path / "own.yaml").write_text(f"{key}: {tmp_path / 'evil.py'}\n")
        line = complaint(tell(["train", "demo/classify", str(tmp_path / "own.yaml")]))
        assert f"unknown field {key}" in line
    assert not (tmp_path / "ran").exists()


# --- bad input

Case = Callable[[Path, Path], list[str]]


def training(*words: str) -> Case:
    return lambda data, tmp: [
        "train",
        "demo/classify",
        f"--data.root={data}",
        f"--out={tmp / 'out'}",
        TINY,
        *QUICK,
        *words,
    ]


WRONG_WORDS: dict[str, tuple[Case, str]] = {
    "verb": (lambda data, tmp: ["evaluat"], "did you mean evaluate"),
    "recipe": (lambda data, tmp: ["train", "imagenet/poolfromer_s12"], "imagenet/poolformer_s12"),
    "no recipe": (lambda data, tmp: ["train", "--seed=1"], "name a recipe"),
    "model": (training("--model.name=poolformer_s21"), "poolformer_s12"),
    "unavailable model": (training("--model.name=cyclemlp_t"), "without code"),
    "mixer": (training("--model.mixers=poling"), "pooling"),
    "mixer option": (training("--model.mixers=pooling(syze=3)"), "syze"),
    "model field": (training("--model.overrides={nrom: batch_norm}"), "norm"),
    "option": (training("--optim.lrr=1"), "did you mean --optim.lr"),
    "type": (training("--optim.lr=fast"), "optim.lr: expected float, got fast"),
    "choice": (training("--optim.name=adam"), "optim.name: expected one of 'adamw', 'lamb', 'sgd', got adam"),
    "optional number": (training("--optim.clip=much"), "optim.clip"),
    "stray word": (training("nonsense"), "nonsense"),
    "batch of nothing": (training("--data.batch_size=0"), "data.batch_size"),
    "no such file": (lambda data, tmp: ["train", "finetune", str(tmp / "own.yaml")], "own.yaml"),
    "import": (training("--import=/nowhere/own.py"), "own.py"),
    "resume": (training("--resume=/nowhere/step_1"), "step_1"),
    "device": (training("--runtime.device=abacus"), "abacus"),
    "source": (lambda data, tmp: ["evaluate", "poolformer_s13", f"--data={data}"], "poolformer_s12"),
    "no weights": (lambda data, tmp: ["predict", "poolformer_n", str(data)], "no weights were published"),
    "images nowhere": (lambda data, tmp: ["predict", "poolformer_n", str(data), "--images"], "--out"),
    "format": (lambda data, tmp: ["convert", "a", "b", "--to=time"], "timm"),
    "bench model": (lambda data, tmp: ["bench", "timm:resnet5O"], "resnet50"),
    "bench batch": (lambda data, tmp: ["bench", "poolformer_n", "--batch=0"], "batch"),
    "verify": (lambda data, tmp: ["verify", "caformer_s81", f"--data={data}"], "caformer_s18"),
    "data": (lambda data, tmp: ["data", "deom", str(tmp)], "demo"),
    "runs": (lambda data, tmp: ["runs", str(tmp / "none")], "no such folder"),
    "list": (lambda data, tmp: ["list", "caformr"], "caformer"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words(case: str, data: Path, tell: Tell, tmp_path: Path) -> None:
    argv, part = WRONG_WORDS[case]
    assert part in complaint(tell(argv(data, tmp_path)))
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not left, "a call that could not begin leaves nothing in the way of the next"


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def other_classes(tmp: Path) -> Path:
    torch.save(create_model("poolformer_n", num_classes=7).state_dict(), tmp / "seven.pth")
    return tmp / "seven.pth"


def other_model(tmp: Path) -> Path:
    torch.save(create_model("poolformer_s12", num_classes=3).state_dict(), tmp / "other.pth")
    return tmp / "other.pth"


def truncated(tmp: Path) -> Path:
    whole = other_classes(tmp).read_bytes()
    (tmp / "cut.pth").write_bytes(whole[: len(whole) // 2])
    return tmp / "cut.pth"


def with_code(tmp: Path) -> Path:
    torch.save(
        {"state_dict": create_model("poolformer_n").state_dict(), "hook": Evil(tmp / "ran")}, tmp / "evil.pth"
    )
    return tmp / "evil.pth"


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (other_classes, "head.fc.weight"),
        (other_model, "stages.0"),
        (truncated, "cut.pth"),
        (with_code, "evil.pth"),
    ],
)
def test_wrong_checkpoints(
    make: Callable[[Path], Path], part: str, data: Path, tell: Tell, tmp_path: Path
) -> None:
    file = make(tmp_path)
    line = complaint(
        tell(["evaluate", "poolformer_n", f"--checkpoint={file}", f"--data={data}", "--workers=0"])
    )
    assert part in line or "classes" in line
    assert not (tmp_path / "ran").exists(), "code in a checkpoint was run"


def test_code_in_a_checkpoint_is_not_run_by_any_verb(data: Path, tell: Tell, tmp_path: Path) -> None:
    file = with_code(tmp_path)
    start = training("--model.name=poolformer_n", f"--model.checkpoint={file}", "--model.overrides={}")
    for argv in (start(data, tmp_path), ["convert", str(file), str(tmp_path / "b.pth"), "--to=timm"]):
        complaint(tell(argv))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "b.pth").exists()


def empty(root: Path) -> None:
    root.mkdir()


def one_class(root: Path) -> None:
    write_images(root, "train", 2, ("red",))
    write_images(root, "val", 2, ("red",))


def missing_in_val(root: Path) -> None:
    write_images(root, "train", 2)
    write_images(root, "val", 2, ("red", "green"))


def broken_image(root: Path) -> None:
    write_images(root, "train", 8)
    write_images(root, "val", 2)
    for broken in (root / "train" / "red").iterdir():
        broken.write_bytes(broken.read_bytes()[:60])


@pytest.mark.parametrize(
    ("make", "part"),
    [(empty, "train"), (one_class, "class"), (missing_in_val, "blue"), (broken_image, "red")],
)
def test_wrong_data(make: Callable[[Path], None], part: str, tell: Tell, tmp_path: Path) -> None:
    root = tmp_path / "data"
    make(root)
    assert part in complaint(tell(training()(root, tmp_path)))


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "convert", "bench", "data"])
def test_places_that_cannot_be_written(verb: str, run: Path, data: Path, tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    place = str(tmp_path / "file" / "out")  # not even root may write below a file
    torch.save(create_model("poolformer_n").state_dict(), tmp_path / "a.pth")
    argv = {
        "train": ["train", "demo/classify", f"--data.root={data}", f"--out={place}", TINY, *QUICK],
        "evaluate": ["evaluate", str(run), "--workers=0", f"--json={place}.json"],
        "predict": ["predict", str(run), str(data / "val"), f"--out={place}"],
        "convert": ["convert", str(tmp_path / "a.pth"), f"{place}.pth", "--to=timm"],
        "bench": ["bench", "poolformer_n", "--counts", f"--json={place}.json"],
        "data": ["data", "demo", place],
    }[verb]
    assert "file" in complaint(tell(argv))
    assert (tmp_path / "file").read_text() == "a file, not a folder"


def test_verify_offline_says_so_line_by_line(
    data: Path, tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("metaformer.weights.download.ATTEMPTS", 1)
    status, out, err = tell(["verify", "cyclemlp_*", f"--data={data}"])
    lines = out.splitlines()
    assert status == 1 and len(lines) == 5 and "Traceback" not in err
    assert all("error: https://" in line for line in lines)


def test_interruption_has_its_own_status(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    import metaformer.cli.listing as verb

    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "run", interrupted)
    assert tell(["list"])[0] == 130


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m metaformer list | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"optim: {lr: [1", "line 1"),
        (b"", "must hold fields"),
        (b"- a\n", "must hold fields"),
        (b"\x89PNG\xff", "not a text file"),
        (b"optim: {lrr: 1}", "unknown field optim.lrr: did you mean --optim.lr"),
        (b"optim: {lr: fast}", "optim.lr: expected float, got fast"),
        (b"data: 3", "data: 3 must be a mapping"),
        (b"seed: 1\nseed: 2", "seed is given a second time"),
    ],
)
def test_what_is_wrong_in_a_yaml_file_is_said_of_that_file(
    content: bytes, told: str, tell: Tell, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(content)
    line = complaint(
        tell(["train", "demo/classify", str(file), "--data.root=x", f"--out={tmp_path / 'run'}"])
    )
    assert f"{file}" in line and told in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("word", "meant"), [("--lr", "--optim.lr"), ("--outt", "--out ")])
def test_nearest_options_of_train(word: str, meant: str, tell: Tell) -> None:
    assert f"unknown option {word}: did you mean {meant}".rstrip() in complaint(
        tell(["train", "demo/classify", word, "1"])
    )


def test_a_file_that_leaves_is_no_success(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit(0)\n")
    assert "own.py: line 1" in complaint(tell(["list", f"--import={tmp_path / 'own.py'}"]))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_below_standard_output() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "metaformer", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "metaformer: error: [Errno 28] No space left on device"
    ]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried …")])
def test_too_little_memory(error: Exception, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    import metaformer.cli.listing as verb

    def exhausted(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(verb, "run", exhausted)
    assert "memory: take smaller images or batches" in complaint(tell(["list"]))
