"""Item 9: every file of the image zoo gives what is documented, and only that."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults.zoo import Animal, zoo

Tally = Callable[[str, str, bool], None]
ZOO = zoo()

READER = """
import json, logging, sys, time
from pathlib import Path
import numpy as np
from metaformer.data.image import read_image
from metaformer.errors import BadImage

class Heard(logging.Handler):
    def emit(self, record): warned.append(record.getMessage())

def peak():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024

warned, told = [], {}
logging.getLogger("metaformer").addHandler(Heard())
for file in sorted(Path(sys.argv[1]).iterdir()):
    warned.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = peak(), time.perf_counter()
    result = {}
    try:
        image = read_image(file)
        result["mode"] = image.mode
    except BadImage as error:
        result["reason"] = error.reason
        result["names"] = str(error.path) == str(file) and str(file) in str(error)
        result["lines"] = len(str(error).splitlines())
    result["seconds"], result["bytes"] = time.perf_counter() - began, peak() - before
    result["warned"] = list(warned)
    if "mode" in result:
        np.save(Path(sys.argv[2]) / f"{file.name}.npy", np.asarray(image))
    told[file.name] = result
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What a process of its own, which a decoder could crash, made of all the files."""
    cage, out = tmp_path_factory.mktemp("zoo"), tmp_path_factory.mktemp("decoded")
    for animal in ZOO:
        (cage / animal.name).write_bytes(animal.content)
    words = [sys.executable, "-c", READER, str(cage), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it")
@pytest.mark.parametrize("animal", ZOO, ids=lambda animal: animal.name)
def test_each_file_gives_what_is_documented(
    animal: Animal, seen: tuple[dict[str, Any], Path], tally: Tally
) -> None:
    told, out = seen
    wrong = _refused(animal, told[animal.name]) if animal.pixels is None else _read(animal, told, out)
    tally("9", "image zoo: each file gives its documented result", not wrong)
    assert not wrong, wrong


def test_the_zoo_is_large_enough() -> None:
    assert len(ZOO) >= 24


def _refused(animal: Animal, told: dict[str, Any]) -> str:
    """Say what is wrong with a refusal."""
    if not re.search(animal.reason, told.get("reason", "")):
        return f"expected {animal.reason!r}, got {told}"
    if not told["names"] or told["lines"] != 1:
        return f"the error is not one line that names the file: {told}"
    if animal.bomb and (told["seconds"] > 0.1 or told["bytes"] > 50 << 20):
        return f"not refused from the header: {told}"
    return ""


def _read(animal: Animal, results: dict[str, Any], out: Path) -> str:
    """Say what is wrong with a decoded image."""
    told = results[animal.name]
    if told.get("mode") != "RGB":
        return f"expected an image, got {told}"
    pixels, expected = np.load(out / f"{animal.name}.npy"), animal.pixels
    assert expected is not None
    if pixels.shape != expected.shape:
        return f"expected shape {expected.shape}, got {pixels.shape}"
    if (worst := int(np.abs(pixels.astype(int) - expected).max())) > animal.within:
        return f"differs by {worst}, which is more than {animal.within}"
    warned = any("first frame" in line and animal.name in line for line in told["warned"])
    return "" if warned == animal.warns else f"warnings: {told['warned']}"
