import inspect
import pickle

import pytest

from metaformer import errors


@pytest.mark.parametrize(
    "error", [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, Exception)]
)
def test_every_error_is_ours(error: type[Exception]) -> None:
    assert issubclass(error, errors.MetaFormerError)


def test_unknown_name_offers_the_nearest() -> None:
    assert "did you mean poolformer_s12" in str(
        errors.UnknownName("model", "poolformer_s21", ["poolformer_s12", "x"])
    )
    assert "known: a, b" in str(errors.UnknownName("model", "zzz", ["b", "a"]))


def test_bad_image_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(errors.BadImage("a.jpg", "truncated")))
    assert str(error) == "a.jpg: truncated" and error.reason == "truncated"
