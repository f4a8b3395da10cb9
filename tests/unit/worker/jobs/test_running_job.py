"""One claimed job in a worker: what must still be sent, and how it ends."""

from __future__ import annotations

import pytest

from tasks.generation import FinishReason
from tasks.job import ErrorCode, Status
from tasks.store.job_writes import AppendTokens, FinishJob
from worker.engine_process.messages import Failure, Update
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.running_job import RunningJob


class Letters:
    """A decoder whose token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return ""


def job(text: str = "", *, stop: tuple[str, ...] = (), attempt: int = 1) -> RunningJob:
    """A job whose log holds `text` from earlier attempts."""
    detokenizer = Detokenizer(Letters(), stop=stop)
    for char in text:
        detokenizer.push(ord(char))
    return RunningJob(
        job_id="job_1",
        attempt=attempt,
        detokenizer=detokenizer,
        token_ids=[ord(char) for char in text],
        pieces=list(text),
        logged=len(text),
    )


def decoded(text: str, finish: FinishReason | None = None, error: Failure | None = None) -> Update:
    return Update("job_1/1", tuple(map(ord, text)), finish, error)


def test_a_new_job_has_nothing_to_send() -> None:
    running = job()
    assert not running.dirty
    assert not running.urgent


def test_the_first_token_is_urgent_and_the_next_are_not() -> None:
    running = job()
    running.extend(decoded("a"))
    assert running.urgent
    running.logged = 1
    running.extend(decoded("b"))
    assert running.dirty
    assert not running.urgent


def test_a_suspect_is_cleared_once_when_its_first_new_tokens_are_in_the_log() -> None:
    cleared: list[int] = []
    running = job("ab", attempt=2)
    running.cleared_at, running.on_cleared = 4, lambda: cleared.append(running.logged)
    running.extend(decoded("c"))
    assert not running.urgent
    running.confirm(3)
    running.extend(decoded("d"))
    assert running.urgent, "other jobs wait for it"
    assert cleared == []
    running.extend(decoded("e"))
    for length in (5, 6):
        running.confirm(length)
    assert cleared == [5]
    assert not running.urgent


def test_an_append_contains_the_tokens_that_the_log_lacks() -> None:
    running = job("ab", attempt=2)
    running.extend(decoded("cd"))
    assert running.operation() == AppendTokens(
        job_id="job_1", attempt=2, before=2, token_ids=(ord("c"), ord("d")), pieces=("c", "d")
    )


def test_the_end_contains_the_whole_text_and_the_last_tokens() -> None:
    running = job("ab", attempt=2)
    running.extend(decoded("c", FinishReason.LENGTH))
    assert running.urgent
    operation = running.operation()
    assert isinstance(operation, FinishJob)
    assert operation.completion == "abc"
    assert (operation.tokens.before, operation.tokens.pieces) == (2, ("c",))
    assert (operation.status, operation.finish_reason) == (Status.SUCCEEDED, FinishReason.LENGTH)


def test_text_held_back_for_a_stop_text_that_never_came_is_the_tail() -> None:
    running = job(stop=("END",))
    running.extend(decoded("1EN"))
    running.extend(decoded("", FinishReason.STOP))
    operation = running.operation()
    assert isinstance(operation, FinishJob)
    assert (operation.tokens.pieces, operation.tail, operation.completion) == (("1", "", ""), "EN", "1EN")


def test_a_stop_text_that_the_engine_did_not_find_ends_the_job_and_later_text_is_left_out() -> None:
    running = job(stop=("END",))
    running.extend(decoded("1ENDx"))
    operation = running.operation()
    assert isinstance(operation, FinishJob)
    assert operation.completion == "1"
    assert operation.finish_reason is FinishReason.STOP
    assert len(operation.tokens.token_ids) == 4


@pytest.mark.parametrize(
    ("finish", "status", "reason", "code"),
    [
        (FinishReason.STOP, Status.SUCCEEDED, FinishReason.STOP, None),
        (FinishReason.NEWLINE, Status.SUCCEEDED, FinishReason.NEWLINE, None),
        (FinishReason.LENGTH, Status.SUCCEEDED, FinishReason.LENGTH, None),
        (FinishReason.CANCELLED, Status.CANCELLED, FinishReason.CANCELLED, None),
        (FinishReason.DEADLINE, Status.FAILED, FinishReason.DEADLINE, ErrorCode.DEADLINE_EXCEEDED),
        (FinishReason.ERROR, Status.FAILED, FinishReason.ERROR, ErrorCode.INTERNAL),
    ],
)
def test_the_end_of_a_sequence_sets_status_reason_and_error_of_the_job(
    finish: FinishReason, status: Status, reason: FinishReason, code: ErrorCode | None
) -> None:
    running = job()
    running.extend(decoded("a", finish, Failure("the step raised")))
    operation = running.operation()
    assert isinstance(operation, FinishJob)
    assert (operation.status, operation.finish_reason, operation.completion) == (status, reason, "a")
    assert (operation.error.code if operation.error else None) == code
    if finish is FinishReason.ERROR:
        assert operation.error is not None
        assert "the step raised" in operation.error.message


def test_a_sequence_for_which_the_engine_has_no_memory_fails_with_a_code_of_its_own() -> None:
    running = job()
    running.extend(decoded("a", FinishReason.ERROR, Failure("CUDA out of memory", out_of_memory=True)))
    operation = running.operation()
    assert isinstance(operation, FinishJob)
    assert operation.error is not None
    assert (operation.error.code, operation.error.retryable) == (ErrorCode.OUT_OF_MEMORY, True)
    assert "CUDA out of memory" in operation.error.message


def test_two_attempts_at_a_job_have_different_sequence_ids() -> None:
    assert job(attempt=1).sequence_id != job(attempt=2).sequence_id
