"""Item 7: no file can run code or exhaust the memory when it is opened."""

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

from faults import hostile
from faults.case import Case
from faults.run import Run, Tally
from warm import python

MEMORY = 150.0
"""Megabytes that opening a file may take, beyond those of a valid command."""


def run_commands(valid: list[str], commands: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """Run commands in turn; the memory of the valid one is subtracted."""
    script = Path(__file__).with_name("open_hostile.py")
    done = subprocess.run(
        [*python(), str(script)],
        input=json.dumps([valid, *commands]),
        capture_output=True,
        text=True,
        timeout=280,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    first, *results = map(json.loads, done.stdout.splitlines())
    assert first["status"] == 0 and len(results) == len(commands), first
    return [{**result, "megabytes": result["megabytes"] - first["megabytes"]} for result in results]


def expect_refusals(
    valid: list[str],
    commands: list[list[str]],
    folder: Path,
    canary: hostile.Canary,
    what: str,
    tally: Tally,
    ignored: tuple[str, ...] = (),
) -> None:
    """Each command fails with one line, and the file's code does not run."""
    for command, result in zip(commands, run_commands(valid, commands, folder), strict=True):
        lines = result["text"].strip().splitlines()
        refused = result["status"] in (1, 2) and bool(lines) and "metaformer: error:" in lines[-1]
        bounded = result["megabytes"] <= MEMORY and result["seconds"] < 15
        ran = canary.path.exists()
        canary.path.unlink(missing_ok=True)
        ignored_field = result["status"] == 0 and any(name in " ".join(command) for name in ignored)
        ok = (refused or ignored_field) and bounded and not ran and "Traceback" not in result["text"]
        tally("7", f"hostile {what} opened", ok, (command, result, ran))


def test_weights_run_nothing(tmp_path: Path, tally: Tally) -> None:
    canary = hostile.Canary(tmp_path / "canary")
    files = hostile.weights(tmp_path / "weights", canary)
    commands = [["convert", str(file), str(tmp_path / "out.safetensors"), "--to", "timm"] for file in files]
    expect_refusals(["--version"], commands, tmp_path, canary, "file of weights", tally)


def test_checkpoints_run_nothing(
    case: Case, reference: Run, data: Path, tmp_path: Path, tally: Tally
) -> None:
    """Checkpoints to predict with."""
    canary = hostile.Canary(tmp_path / "canary")
    image = str(next(data.rglob("*.png")))
    directories = hostile.checkpoints(tmp_path / "directories", reference.last, canary)
    valid, *commands = (
        ["predict", str(path), image, "--out", str(tmp_path / "found.csv")]
        for path in (reference.last, *directories)
    )
    # prediction does not read these fields
    ignored = ("state_import", "state_config", "state_name")
    expect_refusals(valid, commands, tmp_path, canary, "checkpoint", tally, ignored)


def test_configurations_run_nothing(case: Case, data: Path, tmp_path: Path, tally: Tally) -> None:
    canary = hostile.Canary(tmp_path / "canary")
    files = hostile.configurations(tmp_path / "configurations", canary)
    commands = [
        ["train", case.recipe, str(file), "--data.root", str(data), "--out", str(tmp_path / "run")]
        for file in files
    ]
    expect_refusals(["--version"], commands, tmp_path, canary, "configuration", tally)


FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "os.system", "os.popen"),
    *("torch.hub.load", "torch.distributed.checkpoint.FileSystemReader", "FileSystemReader"),
}
MODULES = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "runpy"}


def test_the_source_never_runs_what_it_reads(tally: Tally) -> None:
    source = Path(hostile.write_directory.__code__.co_filename).parents[1]
    for file in sorted(source.rglob("*.py")):
        problems = [text for node in ast.walk(ast.parse(file.read_text())) for text in _problems(node)]
        tally("7", "source file without a way to run what is read", not problems, (file, problems))


def _problems(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
        return [name for name in names if name.split(".")[0] in MODULES]
    if not isinstance(node, ast.Call):
        return []
    called = ast.unparse(node.func)
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    return [
        text
        for text, wrong in (
            (called, called in FORBIDDEN),
            ("weights_only", options.get("weights_only", "True") != "True"),
            (called, called == "torch.load" and "weights_only" not in options),
            ("allow_pickle", options.get("allow_pickle", "False") != "False"),
            ("trust_remote_code", options.get("trust_remote_code", "False") != "False"),
            ("shell", options.get("shell", "False") != "False"),
        )
        if wrong
    ]
