from __future__ import annotations

import time

import pytest

from tasks.job_id import JOB_ID, new_job_id


def test_ids_have_the_documented_form_and_differ() -> None:
    made = {new_job_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(JOB_ID.fullmatch(job_id) for job_id in made)


def test_ids_sort_by_the_time_of_their_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for at_ms in (0, 1, 31, 32, 1_767_225_600_000, 1_767_225_600_001, 2**48 - 1):
        monkeypatch.setattr(time, "time_ns", lambda at_ms=at_ms: at_ms * 1_000_000)
        made.append(new_job_id())
    assert made == sorted(made)
    assert made[0].startswith("job_0000000000")
    assert made[-1].startswith("job_7ZZZZZZZZZ")


@pytest.mark.parametrize(
    "text",
    ["", "job_", "01JZ8K6T4V9Q0000000000000A", "job_01JZ8K6T4V9Q0000000000000", "job_81JZ8K6T4V9Q0000000000000A",
     "job_01JZ8K6T4V9Q0000000000000I", "job_01jz8k6t4v9q0000000000000a", "job_01JZ8K6T4V9Q0000000000000A\n"],
)  # fmt: skip
def test_invalid_ids_do_not_match(text: str) -> None:
    assert JOB_ID.fullmatch(text) is None
