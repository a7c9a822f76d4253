"""`metaformer bench`: which of its three commands the first word chooses."""

import pytest

from metaformer.cli.bench import run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "MODEL"),
        (["data"], "timm's and torchvision's in turn"),
        (["suite"], "the library is judged by"),
    ],
)
def test_help(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run([*words, "--help"])
    assert end.value.code == 0 and told in capsys.readouterr().out


def test_models_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["poolformer_n", "--counts"]) == 0
    assert "poolformer_n" in capsys.readouterr().out
