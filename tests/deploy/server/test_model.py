"""A network's process dies, hangs or cannot load: requests are told, and it is started again."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from metaformer.deploy.server import model
from metaformer.deploy.server.server import name_models
from metaformer.errors import ConfigError
from serving import Running, running


def process_of(server: Running, name: str = "digits") -> int:
    return server.model(name).pid


def test_a_killed_process_is_a_503_and_comes_back(
    untrained: dict[str, Path], photos: list[Image.Image]
) -> None:
    networks = {"digits": untrained["classify"], "other": untrained["classify"]}
    with running(networks, max_delay_ms=10_000, max_batch=2) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.client.image, "/predict/digits", photos[0])
        server.until(lambda: len(server.model("digits")._batcher) == 1)
        begun, dead = time.monotonic(), process_of(server)
        os.kill(dead, signal.SIGKILL)
        answer = waiting.result()
        assert answer.status == 503 and "died" in answer.json()["error"] and answer.headers["retry-after"]
        assert time.monotonic() - begun < 5
        states = server.client("/v2/health/ready")
        if states.status == 503:  # it may be back already
            assert states.json()["models"] == {"digits": "restarting", "other": "ready"}
        server.until(lambda: server.client("/v2/health/ready").status == 200)
        assert process_of(server) != dead
        with ThreadPoolExecutor(2) as two:
            answers = list(two.map(lambda _: server.client.image("/predict", photos[0]), range(2)))
    assert [one.status for one in answers] == [200, 200]


def test_a_process_that_hangs_is_taken_for_dead(
    untrained: dict[str, Path], photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "HEARTBEAT_TIMEOUT", 1.5)
    with running({"digits": untrained["classify"]}) as server:
        os.kill(hung := process_of(server), signal.SIGSTOP)
        begun = time.monotonic()
        answer = server.client.image("/predict", photos[0])
        assert answer.status == 503 and time.monotonic() - begun < 5
        server.until(lambda: server.client("/v2/health/ready").status == 200)
        assert process_of(server) != hung
        assert server.client.image("/predict", photos[0]).status == 200


def test_one_that_dies_again_and_again_is_given_up(
    untrained: dict[str, Path], photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MAX_DEATHS", 2)
    with running({"digits": untrained["classify"]}) as server:
        for _ in range(2):
            server.until(lambda: server.model("digits").ready)
            os.kill(process_of(server), signal.SIGKILL)
            server.until(lambda: not server.model("digits").ready)
        server.until(lambda: server.model("digits").state == "failed")
        assert server.client("/v2/health/live").status == 200
        ready = server.client("/v2/health/ready")
        assert ready.status == 503 and ready.json() == {"ready": False, "models": {"digits": "failed"}}
        answer = server.client.image("/predict", photos[0])
        assert answer.status == 503 and "failed" in answer.json()["error"]


def test_a_network_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run") as caught, running({"x": tmp_path / "none"}):
        pass
    assert str(tmp_path) in str(caught.value)


def test_an_option_of_another_task_is_refused(untrained: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="score"), running({"x": untrained["classify"]}, {"score": 0.5}):
        pass


def test_names_of_networks(tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").touch()
    (tmp_path / "runs" / "boxes.v2").mkdir(parents=True)
    found = name_models([tmp_path / "digits.onnx", tmp_path / "runs/boxes.v2", "poolformer_s12"])
    assert list(found) == ["digits", "boxes.v2", "poolformer_s12"]
    assert list(name_models({"a": "x", "b": "x"})) == ["a", "b"]
    for wrong in ({"a/b": "x"}, {"": "x"}, {"..": "x"}, {"a b": "x"}, {}, [tmp_path / "digits.onnx"] * 2):
        with pytest.raises(ConfigError, match=r"name|called"):
            name_models(wrong)
