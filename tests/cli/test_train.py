"""`metaformer train`: recipes, configuration files and options, and whole runs in small."""

import json
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.cli.train import _command, resolve
from metaformer.errors import ConfigError
from metaformer.factory import create_model
from metaformer.recipes import RECIPES
from metaformer.serialize import check_yaml
from toys import TINY
from warm import python

Cli = Callable[..., Any]
Args = tuple[str, ...]


# --- configuration


def test_a_yaml_file_then_options_change_a_recipe(tmp_path: Path) -> None:
    recipe, file = RECIPES["imagenet/caformer_s18"], tmp_path / "own.yaml"
    assert resolve(recipe, []) == recipe()
    file.write_text("optim: {lr: 0.5, clip: 1}\nmodel:\n  mixers: [pooling, pooling, attention, attention]\n")
    config = resolve(recipe, [str(file), "--optim.lr", "2e-3", "--ema.decay=0.9"])
    assert config.optim.lr == 2e-3 and config.optim.clip == 1.0 and config.optim.name == "lamb"
    assert config.ema.decay == 0.9 and config.model.drop_path_rate == 0.15
    assert config.model.mixers == ["pooling", "pooling", "attention", "attention"]
    auto = resolve(recipe, ["--optim.lr", "auto", "--data.batch_size", "auto"])
    assert (auto.optim.lr, auto.data.batch_size) == ("auto", "auto")
    assert resolve(recipe, ["--model.mixers", "pooling(size=5)"]).model.mixers == "pooling(size=5)"
    assert resolve(recipe, ["--augment.auto_augment=null"]).augment.auto_augment is None


def test_what_begins_with_a_number_sign_is_no_comment() -> None:
    recipe = RECIPES["demo/classify"]
    for args in (["--data.background", "#00ff7f"], ["--data.background=#00ff7f"]):
        assert resolve(recipe, args).data.background == (0, 255, 127)
    assert resolve(recipe, ["--model.checkpoint", "#1.pt"]).model.checkpoint == "#1.pt"


def own_data(root: Path, task: str, size: tuple[int, int] = (100, 70), images: int = 5) -> Path:
    """Images with a bright square, as YOLO's boxes or as label maps."""
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
        for number in range(images):
            pixels = np.full((size[1], size[0], 3), 40, np.uint8)
            pixels[20:50, 20:50] = 250
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            labels = root / "labels" / split / str(number)
            if task == "detect":
                box = f"0 {35 / size[0]} {35 / size[1]} {30 / size[0]} {30 / size[1]}"
                labels.with_suffix(".txt").write_text(box)
            else:
                Image.fromarray((pixels[..., 0] > 100).astype(np.uint8)).save(labels.with_suffix(".png"))
    (root / "classes.txt").write_text("square\n" if task == "detect" else "ground\nsquare\n")
    if task == "detect":
        (root / "data.yaml").write_text("names: [square]\ntrain: images/train\nval: images/val\n")
    return root


def test_sizes_and_batch_of_fine_tuning_fit_the_data(tmp_path: Path) -> None:
    boxes, maps = own_data(tmp_path / "boxes", "detect"), own_data(tmp_path / "maps", "segment")
    config = resolve(RECIPES["finetune/detect"], ["--data.root", str(boxes)])
    assert (config.detect.long_side, config.detect.short_sides, config.data.batch_size) == (128, [96], 5)
    config = resolve(RECIPES["finetune/segment"], ["--data.root", str(maps)])
    assert (config.segment.resize, config.data.image_size, config.data.batch_size) == ((128, 96), 96, 5)
    given = ["--data.root", str(maps), "--data.batch_size", "2", "--segment.resize", "null"]
    config = resolve(RECIPES["finetune/segment"], given)
    assert (config.segment.resize, config.data.image_size, config.data.batch_size) == (None, 96, 2)
    large = own_data(tmp_path / "large", "detect", (1280, 960), 12)
    config = resolve(RECIPES["finetune/detect"], ["--data.root", str(large)])
    assert (config.detect.long_side, config.detect.short_sides, config.data.batch_size) == (640, [480], 8)


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_fine_tuning_on_own_pictures(task: str, tmp_path: Path, cli: Cli) -> None:
    root, run = own_data(tmp_path / "own", task), tmp_path / "run"
    small = [
        "--model.pretrained=false",
        f"--model.overrides={TINY}",
        "--schedule.epochs=1",
        "--data.workers=0",
    ]
    dims = [f"--{task}.fpn_dim=8", f"--{task}.head_dim=8"]
    result = cli("train", f"finetune/{task}", f"--data.root={root}", f"--out={run}", *small, *dims)
    assert result.status == 0, result.err
    assert "to fit the data: " in result.err and (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("recipe", "holds", "option"),
    [
        ("demo/segment", "segment", "--segment.layout folders"),
        ("ade20k/semantic_fpn_poolformer_s12", "segment", "--segment.layout folders"),
        ("demo/detect", "detect", "--detect.layout yolo"),
    ],
)
def test_an_unfit_layout_names_the_option_that_fits(
    recipe: str, holds: str, option: str, tmp_path: Path, cli: Cli
) -> None:
    root = own_data(tmp_path / "own", holds)
    result = cli(
        "train", recipe, f"--data.root={root}", f"--out={tmp_path / 'run'}", "--model.pretrained=false"
    )
    assert option in result.error


def test_the_printed_configuration_is_read_back(cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli("train", "imagenet/cyclemlp_b2", "--optim.lr=0.25", "--print_config")
    (tmp_path / "own.yaml").write_text(out)
    assert status == 0
    config = resolve(RECIPES["imagenet/poolformer_s12"], [str(tmp_path / "own.yaml")])
    assert config == resolve(RECIPES["imagenet/cyclemlp_b2"], ["--optim.lr=0.25"])


def test_the_command_that_resumes_has_one_resume_option() -> None:
    for resume in ([], ["--resume", "auto"], ["--resume=auto"], ["--resume", "a/step_1"]):
        command = _command(["finetune", *resume, "--out", "my run"])
        assert command == "metaformer train finetune --out 'my run' --resume auto"


def test_help_of_a_recipe_has_its_values_and_descriptions_of_fields(cli: Cli) -> None:
    status, out, _ = cli("train", "imagenet/caformer_b36", "--help")
    text = " ".join(out.split())
    assert status == 0 and "Published: top-1 85.5 %" in text and "default: 0.008" in text
    assert "earning rate" in text and "--import FILE.py" in text and "--resume" in text


@pytest.mark.parametrize("key", ["import", "file"])
def test_a_configuration_cannot_run_code(key: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "own.yaml").write_text(f"{key}: {tmp_path / 'evil.py'}\n")
    assert f"unknown field {key}" in cli("train", "demo/classify", tmp_path / "own.yaml").error
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"optim: {lr: [1", "line 1"),
        (b"", "fields"),
        (b"- a\n", "fields"),
        (b"\x89PNG\xff", "text"),
        (b"optim: {lrr: 1}", "optim.lrr: did you mean --optim.lr"),
        (b"optim: {lr: fast}", "optim.lr: expected float or 'auto', got fast"),
        (b"data: 3", "data: 3"),
        (b"seed: 1\nseed: 2", "seed"),
    ],
)
def test_errors_in_a_yaml_file_name_the_file(content: bytes, named: str, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(content)
    error = cli("train", "demo/classify", file, "--data.root=x", f"--out={tmp_path / 'run'}").error
    assert f"{file}" in error and named in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: " + "[" * 30 + "]" * 30, "line 1: nested"),
        ("[" * 200_000, "nested"),
        ("a: &x [1, 1]\nb: [*x, *x]", r"line 2: aliases \(\*x\)"),
        ("seed: 1\noptim:\n  lr: 1\n  eps: 2\n  lr: 3", "line 5: lr"),
        ("a: " + "1" * 1_000_001, "1,000,000 bytes"),
    ],
)
def test_yaml_beyond_plain_fields_is_refused(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"own\.yaml.*{named}"):
        resolve(RECIPES["imagenet/poolformer_s12"], [str(file)])


@pytest.mark.parametrize("text", ["", "seed: 1", "a: {b: [1, [2, 3]], c: null}\nd: {b: 1}", "? [a, b]\n: 1"])
def test_plain_yaml_passes(text: str) -> None:
    check_yaml(text, "own.yaml")


@pytest.mark.parametrize(
    ("args", "status", "named"),
    [
        (["--model.name=poolformer_s21"], 1, "poolformer_s12"),
        (["--model.name=cyclemlp_t"], 1, "without code"),
        (["--model.mixers=poling"], 1, "pooling"),
        (["--model.mixers=pooling(syze=3)"], 1, "syze"),
        (["--model.overrides={nrom: batch_norm}"], 1, "norm"),
        (["--optim.lrr=1"], 2, "did you mean --optim.lr"),
        (["--lr=1"], 2, "--lr: did you mean --optim.lr"),
        (["--outt=x"], 2, "--outt: did you mean --out"),
        (["--optim.lr=fast"], 2, "optim.lr: expected float or 'auto', got fast"),
        (["--optim.name=adam"], 2, "optim.name: expected one of 'adamw', 'lamb', 'sgd', got adam"),
        (["--optim.clip=much"], 2, "optim.clip"),
        (["nonsense"], 2, "nonsense"),
        (["--data.batch_size=0"], 1, "data.batch_size"),
        (["--data.background=purpel"], 1, "data.background"),
        (["--data.background=[0, 0, 256]"], 1, "data.background"),
        (["--data.background=#00112233"], 1, "data.background"),
        (["--config=own.yaml"], 2, "own.yaml"),
        (["--import=/nowhere/own.py"], 1, "own.py"),
        (["--resume=/nowhere/step_1"], 1, "step_1"),
        (["--runtime.device=abacus"], 1, "abacus"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_options_are_named_and_leave_no_run(
    args: list[str], status: int, named: str, pets: Path, cli: Cli, train_args: Args, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = cli(*train_args, f"--data.root={pets}", f"--out={out}", *args)
    assert result.status == status and named in result.error, result
    assert not [path for path in out.rglob("*") if path.is_file()]


# --- runs


def test_training_leaves_a_run_directory(run: Path, pets: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config = config.get("config", config)
    assert config["optim"]["lr"] == 0.01 and config["seed"] == 3 and config["data"]["root"] == str(pets)
    assert (run / "metrics.jsonl").read_text().count("\n") >= 3
    assert (run / "best").exists() and (run / "report.html").stat().st_size > 1000


def test_a_run_is_resumed_not_overwritten(
    run: Path, pets: Path, cli: Cli, train_args: Args, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    args = (*train_args, f"--data.root={pets}", f"--out={copy}", "--seed=3", "--optim.lr=0.01")
    assert "resume" in cli(*args, "--schedule.epochs=3").error
    before = (copy / "metrics.jsonl").read_text()
    assert cli(*args, "--schedule.epochs=4", "--resume=auto").status == 0
    after = (copy / "metrics.jsonl").read_text()
    assert after.startswith(before) and len(after) > len(before)


def test_fine_tuning_from_a_published_format_of_other_classes(
    pets: Path, cli: Cli, train_args: Args, tmp_path: Path
) -> None:
    ours, published, out = (tmp_path / name for name in ("ours.pth", "published.pth", "run"))
    torch.save(create_model("poolformer_n").state_dict(), ours)
    assert cli("convert", ours, published, "--to=poolformer").status == 0
    assert any(key.startswith("network.") for key in torch.load(published, weights_only=True))
    weights = ("--model.name=poolformer_n", "--model.overrides={}", f"--model.checkpoint={published}")
    more = (f"--data.root={pets}", f"--out={out}", "--schedule.warmup_epochs=0")
    assert cli("train", "finetune", *train_args[2:], *weights, *more).status == 0
    assert cli("evaluate", out, "--workers=0").status == 0


ROWS = """
from torch import Tensor, nn
from metaformer.mixers import MIXERS

@MIXERS.register('rows')
class Rows(nn.Module):
    def __init__(self, dim: int, share: float = 0.5) -> None:
        super().__init__()
        self.share = share
    def forward(self, x: Tensor) -> Tensor:
        return self.share * x.mean(3, keepdim=True).expand_as(x)
"""


def test_a_mixer_of_ones_own_by_name(pets: Path, cli: Cli, train_args: Args, tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(ROWS)
    own, out = f"--import={tmp_path / 'rows.py'}", tmp_path / "run"
    mixers = "--model.mixers=[rows, rows(share=0.25), pooling, rows]"
    assert cli(*train_args, f"--data.root={pets}", f"--out={out}", mixers, own).status == 0
    assert "rows(share=0.25)" in (out / "config.json").read_text()
    again = [*python(), "-m", "metaformer", "evaluate", str(out), "--workers=0"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--import" in done.stderr, "a checkpoint brings no code along"
    assert subprocess.run([*again, own], timeout=120).returncode == 0
    assert cli("bench", "poolformer_n", "--counts", own, "--mixers", "rows").status == 0


@pytest.mark.parametrize("fault", ["train", "ant", "bee", "cat/0.png"])
def test_wrong_data_is_named(fault: str, pets: Path, cli: Cli, train_args: Args, tmp_path: Path) -> None:
    root = shutil.copytree(pets, tmp_path / "data")
    if fault == "train":  # no split of this name
        shutil.rmtree(root / "train")
    elif fault == "ant":  # the only class
        for folder in (*root.glob("*/bee"), *root.glob("*/cat")):
            shutil.rmtree(folder)
    elif fault == "bee":  # missing in val
        shutil.rmtree(root / "val" / "bee")
    else:
        for file in (root / "train" / "cat").iterdir():
            file.write_bytes(file.read_bytes()[:60])
    result = cli(*train_args, f"--data.root={root}", f"--out={tmp_path / 'run'}")
    assert result.status == 1 and fault.split("/")[0] in result.error


# --- few file descriptors

LIMITED = """
import resource, sys
from metaformer.cli import main
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if sys.argv[1] == "soft" else 32
resource.setrlimit(resource.RLIMIT_NOFILE, (32, most))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("limit", "workers", "status"), [("hard", 2, 1), ("soft", 2, 0), ("hard", 0, 0)])
def test_with_few_open_files(
    limit: str, workers: int, status: int, train_args: Args, pets: Path, tmp_path: Path
) -> None:
    """A hard limit is an error that names it, a soft one is raised, and no worker needs no more."""
    args = [*train_args, f"--data.root={pets}", f"--out={tmp_path / 'run'}", f"--data.workers={workers}"]
    command = [*python(), "-c", LIMITED, limit, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stderr
    if status:
        assert "error: the limit of 32 open files (ulimit -n)" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


# --- size and crop of the initial weights


@pytest.mark.parametrize(
    ("options", "size", "crop"),
    [
        ("--model.name=caformer_s18.sail_in1k_384", 384, 1.0),
        ("--model.name convformer_s18_384_in21ft1k", 384, 1.0),
        ("--model.name=poolformer_s12", 224, 0.9),
        ("--model.name=caformer_s18 --model.checkpoint=x/caformer_s18_384.pth", 384, 1.0),
        ("--model.name=poolformer_s12 --model.checkpoint={card}", 96, 0.8),
        ("--model.name=poolformer_s12 --model.checkpoint={card}/model.safetensors", 96, 0.8),
        ("--model.name=poolformer_s12 --model.checkpoint={run}", 32, 1.0),
        ("--model.name=poolformer_s12 --model.checkpoint={bad}", 224, 0.95),
        ("--model.name=caformer_s18.sail_in1k_384 --data.image_size=256", 256, 1.0),
        ("{yaml} --evaluate.crop 0.5", 384, 0.5),
        ("--model.name=poolformer_s12 --model.pretrained=false", 224, 0.95),
    ],
)
def test_fine_tuning_takes_the_size_and_crop_of_its_weights(
    options: str, size: int, crop: float, run: Path, tmp_path: Path
) -> None:
    card, yaml = tmp_path / "card", tmp_path / "own.yaml"
    card.mkdir()
    cfg = {"input_size": [3, 96, 96], "crop_pct": 0.8}
    (card / "config.json").write_text(json.dumps({"architecture": "poolformer_s12", "pretrained_cfg": cfg}))
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"input_size": [null], "crop_pct": "x"}}')
    yaml.write_text("model: {name: caformer_s18.sail_in1k_384}\n")
    args = options.format(card=card, run=run, bad=tmp_path, yaml=yaml).split()
    config = resolve(RECIPES["finetune"], args)
    assert (config.data.image_size, config.evaluate.crop) == (size, crop)


def test_help_of_fine_tuning_has_the_size_of_its_weights(cli: Cli) -> None:
    status, out, _ = cli("train", "finetune", "--model.name=caformer_s18.sail_in1k_384", "--print_config")
    assert status == 0 and "image_size: 384" in out and "crop: 1.0" in out


def test_other_recipes_keep_their_size() -> None:
    assert (
        resolve(RECIPES["demo/classify"], ["--model.name=caformer_s18.sail_in1k_384"]).data.image_size == 64
    )


def test_fine_tuning_names_its_size_and_that_of_its_weights(
    run: Path, pets: Path, cli: Cli, train_args: Args, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = [
        "train",
        "finetune",
        *train_args[2:3],
        f"--data.root={pets}",
        f"--model.checkpoint={run}/best/model.safetensors",
    ]
    args += [
        "--model.name=poolformer_n",
        "--schedule.epochs=1",
        "--schedule.warmup_epochs=0",
        "--data.batch_size=8",
        "--data.workers=0",
    ]
    caplog.set_level(logging.WARNING)  # a quantization before may have changed it
    assert cli(*args, f"--out={tmp_path / 'same'}").status == 0
    assert f"data.image_size 32, evaluate.crop 1, as {run}" in caplog.text
    assert cli(*args, f"--out={tmp_path / 'other'}", "--evaluate.crop=0.75").status == 0
    assert "evaluate.crop 0.75; " in caplog.text and "was trained with 32 and 1" in caplog.text


def test_options_are_written_out(cli: Cli) -> None:
    result = cli("train", "finetune", "--schedule.epoch=7", "--print_config")
    assert result.status == 2 and "--schedule.epochs" in result.error
