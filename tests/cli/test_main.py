"""The command line, and the options made from signatures."""

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from metaformer.cli import COMMANDS
from metaformer.cli.options import accepts, add_options, options_of
from metaformer.cli.parser import Parser, UsageError
from metaformer.factory import create_model
from metaformer.recipes import RECIPES
from warm import python

Cli = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def shell(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = f"set -o pipefail; {command.replace('metaformer', f'{sys.executable} -m metaformer', 1)}"
    options |= {"stderr": subprocess.PIPE, "text": True, "timeout": 60}
    return subprocess.run(["bash", "-c", command], **options)


def test_help_needs_no_torch() -> None:
    script = (
        "from metaformer.cli import main; main(['--help']); import sys; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, command in COMMANDS.items():
        assert name in done.stdout and command.example in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(
    name: str, cli: Cli, parse_command: Callable[[str], None]
) -> None:
    status, out, _ = cli(name, "--help")
    assert status == 0 and f"usage: metaformer {name}" in out
    examples = re.findall(r"^  (metaformer .*)", out, re.MULTILINE)
    assert examples
    for command in (*examples, COMMANDS[name].example):
        parse_command(command)


@pytest.mark.parametrize(("name", "classes"), [("predict", 5), ("serve", 10)])
def test_help_shows_the_defaults_of_its_own_command(name: str, classes: int, cli: Cli) -> None:
    assert f"most probable first (default {classes})" in " ".join(cli(name, "--help").out.split())


def test_help_calls_options_of_other_groups_by_their_flags(cli: Cli) -> None:
    text = " ".join(cli("predict", "--help").out.split())
    assert "with --draw, frames a second" in text and "`draw`" not in text


def test_recipes_for_own_data_come_first(cli: Cli) -> None:
    listed = cli("train", "--help").out.split("recipes:\n")[1].split()
    assert listed[0] == "finetune" and set(RECIPES) <= set(listed)


def documented() -> Iterator[str]:
    """Commands of README, docs, Makefile and recipes."""
    pages = (*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/notebooks").glob("*.md")))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages):
        for block in page.read_text().split("\n```")[1::2]:
            lines = block.replace("\\\n", "")
            yield from re.findall(r"^(?:torchrun .*)?metaformer [a-z].*", lines, re.MULTILINE)
    if shutil.which("make"):
        shown = subprocess.run(["make", "-nB", "demo"], cwd=ROOT, capture_output=True, text=True)
        commands = re.findall(r"metaformer (?:train|evaluate|predict|data) .*", shown.stdout)
        yield from (command.split(" 2>&1")[0] for command in commands)
    yield from (recipe.full_command for recipe in RECIPES.values())


@pytest.mark.parametrize("command", dict.fromkeys(documented()))
def test_documented_commands_can_be_parsed(
    command: str, parse_command: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in re.findall(r"\S+\.(?:yaml|py)\b", command):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("seed: 1" if file.endswith("yaml") else "")
    parse_command(command)


def test_version(cli: Cli) -> None:
    assert cli("--version").out.startswith("metaformer 0.")


def test_as_a_module() -> None:
    done = shell("metaformer tarin")
    assert done.returncode == 2 and "did you mean train" in done.stderr


WRONG_USE: dict[str, tuple[list[str], str]] = {
    "command": (["evaluat"], "did you mean evaluate"),
    "subcommand": (["data", "deom", "x"], "'deom': did you mean demo"),
    "no recipe": (["train", "--seed=1"], "recipe"),
    "option": (["evaluate", "poolformer_n", "--flipp"], "--flipp: did you mean --flip"),
    "argument": (["runs", "a", "b"], "'b'"),
    "number": (["bench", "poolformer_n", "--batch=many"], "--batch.*'many'"),
    "choice": (["data", "shard", "a", "b", "--to=zip"], "--to.*'zip'.*parquet"),
    "place": (["predict", "poolformer_n", "x.png", "--draw"], "--draw.*--out"),
    "input": (["predict", "poolformer_n"], "--data"),
}
WRONG_VALUE: dict[str, tuple[list[str], str]] = {
    "recipe": (["train", "imagenet/poolfromer_s12"], "imagenet/poolformer_s12"),
    "source": (["evaluate", "poolformer_s13", "--data=DATA"], "poolformer_s12"),
    "no weights": (["predict", "poolformer_n", "DATA"], "poolformer_n"),
    "format": (["convert", "a", "b", "--to=time"], "timm"),
    "bench model": (["bench", "timm:resnet5O"], "resnet50"),
    "bench batch": (["bench", "poolformer_n", "--batch=0"], "batch"),
    "verify": (["verify", "caformer_s81", "--data=DATA"], "caformer_s18"),
    "runs": (["runs", "TMP/none"], "TMP/none"),
    "list": (["list", "caformr"], "caformer"),
    "import": (["list", "--import=/nowhere/own.py"], r"own\.py"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "args", "named"),
    [(2, *case) for case in WRONG_USE.values()] + [(1, *case) for case in WRONG_VALUE.values()],
    ids=[*WRONG_USE, *WRONG_VALUE],
)
def test_errors_name_the_word(
    status: int, args: list[str], named: str, pets: Path, cli: Cli, tmp_path: Path
) -> None:
    result = cli(*(arg.replace("DATA", str(pets)).replace("TMP", str(tmp_path)) for arg in args))
    assert result.status == status and re.search(named.replace("TMP", str(tmp_path)), result.error), result


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("other classes", "classes"),
        ("other model", r"stages\.0"),
        ("truncated", r"weights\.pth"),
        ("code", r"weights\.pth"),
    ],
)
def test_wrong_checkpoints_are_named_and_their_code_is_not_run(
    kind: str, named: str, pets: Path, cli: Cli, train_args: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    model = create_model("poolformer_s12" if kind == "other model" else "poolformer_n", num_classes=7)
    state: dict[str, Any] = dict(model.state_dict())
    torch.save({"state_dict": state, "hook": Evil(tmp_path / "ran")} if kind == "code" else state, file)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:10_000])
    result = cli("evaluate", "poolformer_n", f"--checkpoint={file}", f"--data={pets}", "--workers=0")
    assert result.status == 1 and re.search(named, result.error), result
    if kind in ("truncated", "code"):
        weights = ("--model.overrides={}", f"--model.checkpoint={file}")
        cli(*train_args, *weights, f"--data.root={pets}", f"--out={tmp_path / 'run'}").error  # noqa: B018
        cli("convert", file, tmp_path / "b.pth", "--to=timm").error  # noqa: B018
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) in (
        ["weights.pth"], [".lock", "weights.pth"],
    )  # fmt: skip


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "convert", "bench", "data"])
def test_outputs_that_cannot_be_written_are_named(
    command: str, run: Path, pets: Path, cli: Cli, train_args: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    out = tmp_path / "file" / "out"  # not even root may write below a file
    torch.save(create_model("poolformer_n").state_dict(), tmp_path / "a.pth")
    args = {
        "train": [*train_args, f"--data.root={pets}", f"--out={out}"],
        "evaluate": ["evaluate", run, "--workers=0", f"--json={out}.json"],
        "predict": ["predict", run, pets / "val", f"--out={out}"],
        "convert": ["convert", tmp_path / "a.pth", f"{out}.pth", "--to=timm"],
        "bench": ["bench", "poolformer_n", "--counts", f"--json={out}.json"],
        "data": ["data", "demo", out],
    }[command]
    result = cli(*args)
    assert result.status == 1 and str(tmp_path / "file") in result.error
    assert (tmp_path / "file").read_text() == "a file, not a folder"


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def run(argv: list[str]) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "named"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), 1, "CUDA out of memory"),
    ],
)
def test_interruptions_and_lack_of_memory(
    error: BaseException, status: int, named: str, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setattr(importlib.import_module("metaformer.cli.listing"), "run", raising(error))
    result = cli("list")
    assert result.status == status and named in result.err and result.err.count("\n") == 1


def test_a_file_that_exits_is_an_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit(0)\n")
    assert "own.py: line 1" in cli("list", f"--import={tmp_path / 'own.py'}").error


def test_a_closed_pipe_is_no_error() -> None:
    done = shell("metaformer list | head -1", stdout=subprocess.PIPE)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("evaluate {run} --json {out}/it.json", 0),
        ("data check {bad} --json {out}/it.json", 1),
        ("predict {run} {photo} --out {out}/it.jsonl", 0),
        ("bench poolformer_n --counts --json {out}/it.json", 0),
    ],
)
def test_results_are_written_where_nobody_reads_the_text(
    command: str, status: int, run: Path, pets: Path, bad_pets: Path, tmp_path: Path
) -> None:
    photo, out = next(pets.glob("val/*/*")), tmp_path / "out"
    out.mkdir()
    args = command.format(run=run, bad=bad_pets, photo=photo, out=out).split()
    reader, writer = os.pipe()
    os.close(reader)  # what is printed fails
    try:
        done = subprocess.run(
            [*python(), "-m", "metaformer", *args],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
    finally:
        os.close(writer)
    assert done.returncode == status and "Error" not in done.stderr and "error:" not in done.stderr
    assert [file.stat().st_size > 0 for file in out.iterdir()] == [True]


ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize("environment", ASCII, ids=["ascii", "C"])
def test_any_terminal_prints_our_texts(environment: dict[str, str]) -> None:
    script = (
        "from metaformer.cli import main\n"
        "for args in ('--help', 'list caformer_s*', 'bench poolformer_n --counts', 'train'):\n"
        "    print(main(args.split()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=100, env={**os.environ, **environment}
    )
    text = done.stdout.decode("ascii") + done.stderr.decode("ascii")
    assert done.returncode == 0 and "metaformer COMMAND ..." in text, text
    assert [line for line in text.splitlines() if line.isdecimal()] == ["0", "0", "0", "2"]


def test_the_remedy_for_names_that_the_locale_cannot_hold_is_named(tmp_path: Path) -> None:
    files = {
        "folders/train/Käse/a.png": b"", "folders/val/Käse/a.png": b"",
        "voc/JPEGImages/Käse.png": b"", "voc/SegmentationClass/Käse.png": b"",
        "voc/ImageSets/Segmentation/train.txt": "Käse\n".encode(),
        "listed/JPEGImages/Käse.png": b"", "listed/Annotations/Käse.xml": b"",
        "listed/ImageSets/Main/train.txt": "Käse\n".encode(),
        "own.yaml": "data: {root: Käse}".encode(),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    script = (
        "from metaformer.cli import main\n"
        "for args in ('data check folders', 'train demo/classify --data.root folders --out run',\n"
        "             'data check voc --split train', 'data check listed --split train',\n"
        "             'train demo/classify --config own.yaml'):\n"
        "    print(main(args.split()), flush=True)\n"
        "from metaformer import Predictor\n"
        "Predictor('K\\xe4se')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        timeout=100,
        env={**os.environ, **ASCII[1]},
    )
    *outputs, error = re.split(r"^[12]\n", done.stdout.decode("ascii"), flags=re.MULTILINE)
    assert len(outputs) == 5, outputs
    for text in (*outputs, error):
        assert "PYTHONUTF8=1" in text and "rename" not in text, text
        assert "Traceback" not in text or text is error


def test_json_is_exact_on_any_terminal(run: Path, pets: Path, tmp_path: Path) -> None:
    photo = tmp_path / "3×4 猫 🐈.png"
    shutil.copy(next(pets.glob("val/*/*")), photo)
    script = "import sys; sys.stdout.reconfigure(encoding='ascii'); from metaformer.cli import main; "
    command = [*python(), "-c", script + "sys.exit(main(sys.argv[1:]))", "predict", run, photo]
    done = subprocess.run(command, capture_output=True, timeout=100, check=True)
    assert json.loads(done.stdout.decode("ascii"))["path"] == str(photo)


def test_names_that_are_no_utf8_are_printed() -> None:
    command = [*python(), "-m", "metaformer", "runs", b"\xff"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"metaformer: error: \\udcff: no such folder\n")


@pytest.mark.parametrize(
    "line",
    [
        "predict {run} --top-k 1 {photo}",
        "predict --top-k 1 {run} {photo} {photo}",
        "predict {run} {photo} --top-k 1 {photo}",
        "evaluate --flip {run}",
        "bench --counts poolformer_n --size 64 poolformer_s12",
    ],
)
def test_options_stand_anywhere(line: str, run: Path, pets: Path, cli: Cli) -> None:
    status, out, err = cli(*line.format(run=run, photo=next(pets.glob("val/*/*"))).split())
    assert status == 0, err
    assert out.count('"path"') == line.count("{photo}")
    assert ("poolformer_s12" in out) == line.startswith("bench")


MIXER = """
import sys
from torch import nn
from metaformer.mixers import MIXERS

@MIXERS.register("{name}")
class Own(nn.Identity):
    def __init__(self, dim, **context):
        super().__init__()

print("ran {name}", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "line",
    [
        "list --mixers",
        "bench poolformer_n --counts --mixers own_a own_b own_a own_b",
        "train demo/classify --data.root {pets} --out {out} --data.image_size 0",
    ],
)
def test_several_files_are_imported(line: str, cli: Cli, tmp_path: Path, pets: Path) -> None:
    options = []
    for name in ("own_a", "own_b"):
        file = tmp_path / name / "mixer.py"
        file.parent.mkdir()
        file.write_text(MIXER.format(name=name))
        options += ["--import", file]
    result = cli(*line.format(pets=pets, out=tmp_path / "run").split(), *options)
    assert result.err.startswith("ran own_a\nran own_b\n"), result
    if line.startswith("train"):
        assert "data.image_size" in result.error
    else:
        assert result.status == 0 and ("own_b" in result.out or "bench" in line)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_below_standard_output() -> None:
    done = shell("metaformer list > /dev/full")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "[Errno 28] No space left on device" in done.stderr


def evaluate(
    data: str,
    *,
    flip: bool = False,
    crops: int = 5,
    score: float | None = None,
    names: str | Path | Sequence[str] | None = None,
    layout: Literal["coco", "voc"] = "coco",
    scales: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    images: tuple[int, int] = (6, 2),
) -> None:
    """Evaluate.

    Args:
        data: no option.
        flip: average views.
        crops: number of crops.
        score: 50 % or
            more, with `flip`.
        names: file of names.
        layout: files on disk.
        scales: factors, such as 1,2 (default: one).
        classes: names.
        images: of two splits.
    """


def other(*, layout: Literal["voc", "yolo"] = "voc", top_k: int = 1) -> None:
    """Another.

    Args:
        layout: files.
        top_k: classes.
    """


def parse(function: Callable[..., Any], *args: str, **options: Any) -> dict[str, Any]:
    parser = Parser("evaluate", "", "")
    add_options(parser, list(options_of(function)), **options)
    return vars(parser.parse_args(list(args)))


def test_defaults_are_those_of_the_signature() -> None:
    options: dict[str, Any] = {
        "flip": False, "crops": 5, "score": None, "names": None, "layout": "coco", "scales": None,
        "classes": None, "images": (6, 2),
    }  # fmt: skip
    assert parse(evaluate) == options
    assert parse(evaluate, given_only=True) == {}


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["--flip"], "flip", True),
        (["--crops", "3"], "crops", 3),
        (["--score=.5"], "score", 0.5),
        (["--names", "a.txt"], "names", Path("a.txt")),
        (["--layout", "voc"], "layout", "voc"),
        (["--scales", "0.5,1"], "scales", [0.5, 1.0]),
        (["--classes", "hot dog, cat"], "classes", ["hot dog", "cat"]),
        (["--images", "3", "1"], "images", [3, 1]),
    ],
)
def test_values_have_the_types_of_the_signature(args: list[str], name: str, value: Any) -> None:
    assert parse(evaluate, *args, given_only=True) == {name: value}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--crops", "five"], "--crops.*'five'"),
        (["--score", "much"], "--score.*'much'"),
        (["--scales", "a,b"], "--scales 'a,b'"),
        (["--scales", ""], "--scales ''"),
        (["--classes", "cat,,dog"], "--classes 'cat,,dog'"),
        (["--layout", "coca"], "--layout.*'coca'.*voc"),
        (["--flipp"], "--flipp: did you mean --flip"),
        (["--crop", "3"], "--crop: did you mean --crops"),
        (["--flip", "yes"], "'yes'"),
        (["--crops"], "--crops"),
        (["--images", "3"], "--images"),
    ],
)
def test_wrong_values_and_options_are_named(args: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse(evaluate, *args)


def test_help_is_the_docstring() -> None:
    parser = Parser("evaluate", "", "")
    add_options(parser, list(options_of(evaluate)))
    text = " ".join(parser.format_help().split())
    assert "--crops N number of crops (default 5)" in text
    assert "--score X 50 % or more, with --flip --names PATH file of names" in text
    assert "such as 1,2 (default: one) --classes" in text
    assert "--images N N of two splits (default 6 2)" in text


def test_the_same_option_of_several_functions_is_one() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, [*options_of(evaluate), *options_of(other, skip=["top_k"])])
    values = vars(parser.parse_args(["--layout", "yolo"]))
    assert values["layout"] == "yolo" and "top_k" not in values
    assert accepts(other, {"layout": "yolo", "top_k": 3})
    assert not accepts(evaluate, {"layout": "yolo"}) and not accepts(evaluate, {"top_k": 3})


def test_arguments_need_a_description_and_a_known_type() -> None:
    def undocumented(*, size: int = 1) -> None:
        """No arguments."""

    def untyped(*, size: dict[str, int] | None = None) -> None:
        """Wrong type.

        Args:
            size: a mapping.
        """

    for function in (undocumented, untyped):
        with pytest.raises(AssertionError):
            list(options_of(function))
