"""Records that are stored as JSON or as a hash are read back unchanged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.card import Card, TokenizerCard
from tasks.generation import FinishReason, Generation
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.worker_info import WorkerInfo, WorkerState
from tests.helpers.requests import make_generation

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    prompt=TEXT,
    stop=st.lists(TEXT, max_size=4).map(tuple),
    seed=st.integers(0, 2**53 - 1),
    temperature=st.floats(0, 2),
    top_k=st.none() | st.integers(1),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    biases=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100), max_size=4),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
)
def test_a_generation(
    prompt: str,
    stop: tuple[str, ...],
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    biases: dict[int, float],
    stop_token_ids: tuple[int, ...],
    logprobs: int | None,
) -> None:
    generation = make_generation(
        prompt=prompt,
        max_tokens=5,
        temperature=temperature,
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
        logit_bias=tuple(sorted(biases.items())),
        stop_token_ids=stop_token_ids,
        logprobs=logprobs,
    )
    assert Generation.from_json(generation.to_json()) == generation
    assert generation.to_json().isascii()


def test_a_generation_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        make_generation(prompt="", max_tokens=1, temperature=float("nan"), seed=0).to_json()


def test_a_card() -> None:
    tokenizer = TokenizerCard(
        kind="characters", text_ids=3, characters='0"\n', unknown="skip", bos_id=3, prepend_bos=True
    )
    card = Card(
        name="tiny",
        digest="00ff",
        step=None,
        loss=None,
        loss_name=None,
        era="E1b",
        n_layer=1,
        n_head=2,
        n_kv_head=1,
        n_embd=8,
        vocab_size=32,
        context=64,
        softcap=15.0,
        parameters=100,
        weight_bytes=400,
        kv_bytes_per_token=64,
        tokenizer=tokenizer,
    )
    assert Card.from_json(card.to_json()) == card
    assert "\n" not in card.to_json()


def test_a_worker() -> None:
    info = WorkerInfo(
        name="tiny-1@host",
        incarnation="abc",
        checkpoint="tiny",
        device="cpu",
        slots=32,
        pid=7,
        host="höst",
        digest="00ff",
        state=WorkerState.BUSY,
        running=3,
        kv_tokens=1000,
        kv_tokens_free=900,
        tokens_per_s=1234.5,
        started_at=5,
        heartbeat_at=6,
    )
    fields = [part.encode() for part in info.to_fields()] + [b"started_at", b"5", b"heartbeat_at", b"6"]
    assert WorkerInfo.from_hash(dict(zip(fields[::2], fields[1::2], strict=True))) == info


def test_a_job_with_all_fields() -> None:
    error = JobError(ErrorCode.DEADLINE_EXCEEDED, "Too late.", retryable=False)
    record = {
        "id": "job_1",
        "owner": "anybody",
        "version": "9",
        "status": "failed",
        "checkpoint": "tiny",
        "digest": "00ff",
        "input": make_generation(prompt="é", max_tokens=5, temperature=0.5, seed=1).to_json(),
        "priority": "3",
        "created_at": "1",
        "started_at": "2",
        "first_token_at": "3",
        "finished_at": "9",
        "expires_at": "99",
        "result_ttl_ms": "90",
        "attempt": "2",
        "losses": "4",
        "losses_in_a_row": "1",
        "resumed_tokens": "4",
        "worker": "tiny-1@host",
        "prompt_tokens": "5",
        "tokens": "6",
        "completion": "é\n",
        "finish_reason": "deadline",
        "error": error.to_json(),
        "warnings": '["w"]',
        "metadata": json.dumps({"k": "v"}),
        "cancel_requested_at": "7",
        "cancel_acked_at": "9",
        "cancel_tokens_after": "1",
    }
    job = Job.from_hash("job_1", {name.encode(): value.encode() for name, value in record.items()})
    assert (job.status, job.finish_reason, job.error) == (Status.FAILED, FinishReason.DEADLINE, error)
    assert (job.completion, job.warnings, dict(job.metadata)) == ("é\n", ("w",), {"k": "v"})
    assert job.cancellation is not None
    assert (job.cancellation.latency_ms, job.cancellation.tokens_after) == (2, 1)
    assert job.position is None


def test_a_request_of_a_newer_version_keeps_its_fields_and_says_that_it_is_not_supported() -> None:
    generation = make_generation(prompt="x", max_tokens=5, temperature=0.5, seed=1)
    newer = json.dumps({**json.loads(generation.to_json()), "min_q": 0.1, "token_bias": {"7": 1}})
    read = Generation.from_json(newer)
    assert (read.prompt, read.sampling) == (generation.prompt, generation.sampling)
    assert read.unsupported() == ["min_q", "token_bias"]
    assert json.loads(read.to_json()) == json.loads(newer)
    assert generation.unsupported() == []


def test_a_request_leaves_out_what_is_unset_so_that_an_older_version_can_read_it() -> None:
    fields = json.loads(make_generation(prompt="x", max_tokens=5, temperature=0.0, seed=0).to_json())
    assert fields == {"prompt": "x", "max_tokens": 5, "temperature": 0.0, "seed": 0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"logit_bias": [[5, 1.0]]},
        {"logit_bias": {"05": 1.0}},
        {"logit_bias": {"x": 1.0}},
        {"logit_bias": {"5": True}},
        {"logit_bias": {"5": "1"}},
        {"stop_token_ids": [True]},
        {"stop_token_ids": [1.0]},
        {"stop_token_ids": {}},
        {"min_tokens": 1.5},
        {"logprobs": True},
    ],
)
def test_a_request_with_a_field_of_another_type_is_no_request(wrong: dict[str, object]) -> None:
    fields = json.loads(make_generation(prompt="x", max_tokens=5).to_json())
    with pytest.raises(ValueError, match=r"another type|a bias is"):
        Generation.from_json(json.dumps({**fields, **wrong}))


@pytest.mark.parametrize(
    "beyond",
    [
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"2147483648": 1}},
        {"logit_bias": {str(token): 1 for token in range(1001)}},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [2**31]},
        {"stop_token_ids": [1] * 65},
        {"stop": ["x"] * 17},
        {"stop": [""]},
        {"logprobs": 21},
        {"repetition_penalty": 0},
    ],
)
def test_values_that_only_a_newer_version_accepts_are_not_supported(beyond: dict[str, object]) -> None:
    fields = json.loads(make_generation(prompt="x", max_tokens=5).to_json())
    assert Generation.from_json(json.dumps({**fields, **beyond})).unsupported() == [*beyond]


def test_an_error_code_of_a_newer_version_counts_as_internal() -> None:
    error = JobError.from_json('{"code": "of_the_future", "message": "Why.", "retryable": true}')
    assert error == JobError(ErrorCode.INTERNAL, "Why.", retryable=True)
