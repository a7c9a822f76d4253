from pathlib import Path

import pytest

from metaformer.cli.plain_yaml import check_yaml
from metaformer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 30 + "]" * 30, "line 1: nested more than 20 levels deep"),
        ("[" * 200_000, "nested more than 20"),
        ("a: &x [1, 1]\nb: [*x, *x]", r"line 2: aliases \(\*x\) are not read"),
        ("seed: 1\noptim:\n  lr: 1\n  eps: 2\n  lr: 3", "line 5: lr is given a second time"),
        ("a: " + "1" * 1_000_001, "1,000,004 bytes are no configuration"),
    ],
)
def test_what_no_configuration_needs_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"own\.yaml.*{told}"):
        check_yaml(file)


@pytest.mark.parametrize("text", ["", "seed: 1", "a: {b: [1, [2, 3]], c: null}\nd: {b: 1}", "? [a, b]\n: 1"])
def test_plain_files_pass(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    check_yaml(file)
