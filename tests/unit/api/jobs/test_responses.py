"""Responses about jobs."""

import pytest

from api.http.problems import KINDS
from api.jobs.responses import code_of
from tasks.job import ErrorCode


@pytest.mark.parametrize("error", ErrorCode)
def test_every_failure_of_a_job_has_a_status(error: ErrorCode) -> None:
    assert KINDS[code_of(error)].status >= 409
