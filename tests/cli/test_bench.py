"""`metaformer bench`: its command line."""

import pytest

from metaformer.cli.bench import run


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--help"])
    assert end.value.code == 0 and "MODEL" in capsys.readouterr().out


def test_models_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["poolformer_n", "--counts"]) == 0
    assert "poolformer_n" in capsys.readouterr().out
