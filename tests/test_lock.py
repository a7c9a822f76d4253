import subprocess
import sys
from pathlib import Path

import pytest

from metaformer.errors import OutputError
from metaformer.storage import is_held, lock


def test_one_holds_and_the_end_of_a_process_lets_go(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    assert not is_held(file) and not file.exists()
    with lock(file, "the run"):
        assert is_held(file)
        with pytest.raises(OutputError, match="the run: another process"), lock(file, "the run", patience=0):
            pass
    assert not is_held(file)
    script = "import sys, time; from pathlib import Path; from metaformer.storage import lock\n"
    script += "with lock(Path(sys.argv[1]), 'it'): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", script, file], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert is_held(file)
    holder.kill()
    holder.communicate()
    assert not is_held(file)


def test_a_place_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make this folder"), lock(tmp_path / "file" / "x", "it"):
        pass
