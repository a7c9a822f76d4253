"""Completion of a shell's commands, with the shell itself."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from metaformer.cli import COMMANDS, main

Cli = Callable[..., Any]
pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of bash, in a folder with a run."""
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(["--print-completion", "bash"]) == 0
    folder = tmp_path_factory.mktemp("completion")
    (folder / "own-run").mkdir()
    (folder / "script").write_text(printed.getvalue())
    return folder / "script"


def offered(script: Path, line: str) -> list[str]:
    """What bash offers at the end of a line."""
    program = f"""
        source {script}
        COMP_WORDS=({line}{"" if line[-1] != " " else "''"})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        function=$(complete -p metaformer | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", program], cwd=script.parent, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_commands_are_offered(script: Path) -> None:
    assert set(offered(script, "metaformer ")) == set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("metaformer data em", ["emoji-scenes"]),
        ("metaformer data shard a b --to p", ["parquet"]),
        ("metaformer predict --fl", ["--flip"]),
        ("metaformer serve --max-b", ["--max-batch"]),
        ("metaformer evaluate own", ["own-run"]),
        ("metaformer bench cyclemlp_b1", ["cyclemlp_b1", "cyclemlp_b1.in1k"]),
        ("metaformer bench poolformer_n --mixers dw", ["dwconv"]),
        ("metaformer train demo/cl", ["demo/classify"]),
        ("metaformer train demo/classify --optim.na", ["--optim.name"]),
        ("metaformer train demo/classify --optim.name la", ["lamb"]),
        (
            "metaformer train demo/classify --model.name caformer_b36.sail_in1k_",
            ["caformer_b36.sail_in1k_384"],
        ),
        ("metaformer train demo/classify --data.root own", ["own-run"]),
    ],
)
def test_options_and_names_are_offered(line: str, words: list[str], script: Path) -> None:
    assert offered(script, line) == words


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
def test_zsh_reads_its_script(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "_metaformer").write_text(cli("--print-completion", "zsh").out)
    subprocess.run(["zsh", "-n", tmp_path / "_metaformer"], check=True, timeout=30)


def test_other_shells_and_a_missing_package_are_errors(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bash or zsh" in cli("--print-completion", "csh").error
    assert "bash or zsh" in cli("--print-completion").error
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "metaformer[completion]" in cli("--print-completion", "bash").error
