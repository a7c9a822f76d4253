"""The example for many machines, with Ray: `make test-ray`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from metaformer import Predictor, create_model
from metaformer.weights.hub import save_pretrained
from toys import TINY

START = """
import ray, runpy, sys
sys.argv = sys.argv[1:]
ray.init(num_cpus=4)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Reading, the network, and the filter of what is done need a CPU each; the machine may have fewer."""
EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_predict.py"
IMAGES = 400


@pytest.mark.ray
def test_a_job_that_is_killed_twice_does_each_image_once(tmp_path: Path) -> None:
    images, out, random = tmp_path / "images", tmp_path / "out", np.random.RandomState(0)
    images.mkdir()
    for i in range(IMAGES):
        pixels = random.randint(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i:03d}.png")
    torch.manual_seed(0)
    save_pretrained(create_model("poolformer_n", num_classes=3, **TINY), tmp_path / "model")
    command = [sys.executable, "-c", START, EXAMPLE, tmp_path / "model", images, out]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}

    def rows() -> list[dict[str, object]]:
        files = sorted(out.rglob("*.parquet"))
        return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]

    before = 0
    for _ in range(2):
        job = subprocess.Popen(command, env=environment, start_new_session=True)
        while len(list(out.rglob("*.parquet"))) <= before + 1 and job.poll() is None:
            time.sleep(0.01)
        assert job.poll() is None, "the job ended before it was killed: take more images"
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        time.sleep(5)  # Ray's other processes find out
        before = len(list(out.rglob("*.parquet")))
        assert 0 < len(rows()) < IMAGES
    subprocess.run(command, env=environment, check=True, timeout=250)
    found = {row["path"]: row for row in rows()}
    assert len(rows()) == len(found) == IMAGES
    for result in Predictor(tmp_path / "model", device="cpu")(images):
        assert found[result.path]["labels"] == list(result.labels)
        assert found[result.path]["scores"] == pytest.approx(result.scores, abs=1e-6)
