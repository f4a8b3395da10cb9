"""The column PROMPT of `celeriac jobs`."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac import Job
from celeriac.cli.commands.jobs import row_of
from tests.helpers.job_objects import QUEUED, job_object

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "one\nline"}]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"prompt": "1+1="}, "1+1="),
        ({"prompt": "x" * 31}, "x" * 29 + "…"),
        ({"prompt": "", "messages": MESSAGES}, r"one\nline"),
        ({"prompt": "", "prompt_token_ids": [1, 2]}, "[1, 2]"),
    ],
)
def test_the_prompt_is_what_the_job_continues(given: dict[str, Any], shown: str) -> None:
    raw = job_object(QUEUED)
    raw["input"] |= given
    assert row_of(Job.from_json(raw))[-1] == shown
