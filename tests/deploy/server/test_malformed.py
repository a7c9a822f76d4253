"""Bad requests get an error as JSON, which shows nothing of the server."""

import pytest

import hostile_requests
from hostile_requests import FIXED, KINDS, problem
from serving import Running


@pytest.mark.parametrize("name", FIXED)
def test_a_bad_request_gets_an_error(name: str, server: Running) -> None:
    answer = server.client.raw(FIXED[name])
    assert problem(answer) == "", answer


def test_generated_bad_requests_get_errors(server: Running) -> None:
    wrong = []
    for request in hostile_requests.generated(8 * len(KINDS)):
        answer = server.client.raw(request)
        if problem(answer):
            wrong.append((request, answer))
    assert not wrong, wrong[0]
    assert server.client("/v2/health/ready").status == 200
