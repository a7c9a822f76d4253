"""Every registered mixer keeps the contract of `metaformer.testing`; new ones are covered unasked."""

import pytest

from metaformer.mixers import MIXERS
from metaformer.testing import CHECKS, Check, MixerCase

PROMISES = [
    pytest.param(name, check, marks=[pytest.mark.slow] if check.slow else [], id=f"{name}-{check.name}")
    for name in MIXERS
    for check in CHECKS.values()
]


@pytest.mark.parametrize(("name", "check"), PROMISES)
def test_contract(name: str, check: Check) -> None:
    check.run(MixerCase(name))
