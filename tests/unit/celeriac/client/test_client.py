"""Both clients over a mock transport: the same requests, the same results, the same errors."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import pickle
import subprocess
import sys
from typing import Any

import httpx
import pytest

import celeriac
from celeriac import (
    ApiError,
    AsyncInferenceClient,
    InferenceClient,
    InvalidRequestError,
    Job,
    NotFoundError,
    UnexpectedAnswerError,
)
from celeriac.client import options
from tasks.job import ErrorCode, JobError, Status
from tasks.sampling_params import SAMPLING_FIELDS
from tests.helpers.both_clients import Both, Handler
from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, SUCCEEDED, job_object

GENERATED = {"prompt": "1+1=", "generated_text": "1+1=2", "tokens_generated": 1, "model": "step_002920"}
INFO = {
    "checkpoint": "step_002920",
    "step": 2920,
    "val_loss": None,
    "model_layers": 4,
    "model_dim": 128,
    "vocab_size": 32,
}


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


def always(body: Any, status: int = 200) -> Handler:
    return lambda _: httpx.Response(status, json=body)


def test_generate_sends_the_guides_body_and_returns_its_dictionary(call: Both) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={**GENERATED, "of_a_later_version": 1})

    assert call(handler, "generate", "1+1=", max_tokens=20, temperature=0.0) == GENERATED
    [request] = seen
    assert (request.method, str(request.url)) == ("POST", "http://host/prefix/generate")
    assert json.loads(request.content) == {
        "prompt": "1+1=",
        "max_tokens": 20,
        "temperature": 0.0,
        "stop_on_newline": False,
    }


def test_every_option_is_sent(call: Both) -> None:
    bodies: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(202, json=job_object(QUEUED))

    sampling = {
        "prompt": "1",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 4,
        "stop_on_newline": True,
        "top_p": 0.9,
        "seed": 0,
        "stop": ["x"],
        "ignore_eos": True,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"5": -1.5},
        "stop_token_ids": [3],
        "min_tokens": 2,
        "logprobs": 3,
        "prompt_logprobs": 0,
        "model": "m",
    }
    job_options = {
        "priority": 0,
        "metadata": {"a": "b"},
        "result_ttl_s": 60,
        "wait_for_worker": True,
        "queue_timeout_s": 1.5,
        "run_timeout_s": 2.0,
        "deadline_s": 3.0,
        "max_queue_position": 0,
    }
    job = call(handler, "submit", **sampling, **job_options)
    assert bodies == [{**sampling, **job_options}]
    assert (job.id, job.status, job.position, job.metadata) == (JOB_ID, "queued", 3, {"run": "7"})


def test_options_that_are_off_or_none_are_not_sent(call: Both) -> None:
    bodies: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=GENERATED)

    call(handler, "generate", "1", ignore_eos=False, top_k=None, top_p=None, seed=None, stop=None, model=None)
    assert bodies[0].keys() == {"prompt", "max_tokens", "temperature", "stop_on_newline"}


@pytest.mark.parametrize("name", ["generate", "generate_stream", "submit"])
def test_an_unknown_option_is_a_type_error_and_nothing_is_sent(call: Both, name: str) -> None:
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(202, json=job_object(QUEUED))

    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'top_q'$"):
        call(handler, name, "1", top_q=0.5)
    assert requests == []


@pytest.mark.parametrize("name", ["generate", "generate_stream"])
def test_options_of_jobs_belong_to_submit_only(call: Both, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'priority'$"):
        call(always(GENERATED), name, "1", priority=0)


def test_generate_stream_refuses_an_unknown_option_before_it_is_iterated() -> None:
    with InferenceClient() as client, pytest.raises(TypeError, match="top_q"):
        client.generate_stream("1", top_q=0.5)  # type: ignore[call-arg]


def test_the_client_has_every_sampling_field_of_the_server() -> None:
    explicit = inspect.signature(InferenceClient.generate).parameters.keys() & {field.name for field in SAMPLING_FIELDS}
    assert explicit == {"max_tokens", "temperature", "top_k", "stop_on_newline"}
    assert {field.name for field in SAMPLING_FIELDS} == explicit | options.SamplingOptions.__annotations__.keys()


@pytest.mark.parametrize("client", [InferenceClient, AsyncInferenceClient])
def test_the_help_of_a_method_names_the_declaration_of_its_options(client: type) -> None:
    for name, declaration in options.OPTIONS_OF.items():
        assert f"celeriac.client.options.{declaration.__name__}" in getattr(client, name).__doc__
        assert getattr(client, name).__annotations__["options"] == f"Unpack[{declaration.__name__}]"


def test_health_and_info_return_the_guides_dictionaries(call: Both) -> None:
    health = {"status": "ok", "model_loaded": True, "checkpoint": "step_002920"}
    assert call(always(health), "health") == health
    assert call(always(INFO), "info") == INFO


def test_wait_returns_a_failed_job(call: Both) -> None:
    failed = job_object(
        SUCCEEDED,
        status=Status.FAILED,
        completion="2",
        error=JobError(ErrorCode.OUT_OF_MEMORY, "No memory.", retryable=True),
    )
    job = call(always(failed), "wait", JOB_ID)
    assert (job.status, job.done, job.text) == ("failed", True, "2")
    assert job.error is not None
    assert job.error.retryable
    with pytest.raises(celeriac.JobFailedError, match=r"No memory\. \(out_of_memory\)"):
        job.result()


def test_watch_yields_each_change_until_the_end(call: Both) -> None:
    responses = iter([job_object(QUEUED), job_object(RUNNING), job_object(SUCCEEDED)])
    jobs = call(lambda _: httpx.Response(200, json=next(responses)), "watch", JOB_ID)
    assert [job.status for job in jobs] == ["queued", "running", "succeeded"]


def test_options_that_are_not_given_are_left_out_for_older_servers(call: Both) -> None:
    bodies: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(202, json=job_object(QUEUED))

    call(handler, "submit", "1")
    assert bodies[0].keys() == {
        "prompt",
        "max_tokens",
        "temperature",
        "stop_on_newline",
        "priority",
        "wait_for_worker",
    }


def test_a_job_has_its_limits_and_estimates(call: Both) -> None:
    raw = job_object(QUEUED)
    raw |= {"retry_of": "job_before", "deadline_at": "2027-01-15T08:00:30.000Z", "losses": 2}
    raw["queue"] |= {"eta_start_s": 0.5, "eta_finish_s": {"p50": 1.5, "p90": 4.0}}
    job = call(always(raw), "job", JOB_ID)
    assert (job.retry_of, job.losses, job.eta_start_s) == ("job_before", 2, 0.5)
    assert (job.eta_finish_s.p50, job.eta_finish_s.p90) == (1.5, 4.0)
    assert job.deadline_at.isoformat() == "2027-01-15T08:00:30+00:00"


def test_a_job_of_an_older_server_can_be_read(call: Both) -> None:
    raw = job_object(QUEUED)
    for place, names in ((raw, ("retry_of", "deadline_at")), (raw["queue"], ("eta_start_s", "eta_finish_s"))):
        for name in names:
            place.pop(name, None)
    job = call(always(raw), "job", JOB_ID)
    assert (job.retry_of, job.deadline_at, job.eta_start_s, job.eta_finish_s) == (None, None, None, None)


def test_retry_returns_the_new_job_and_delete_returns_none(call: Both) -> None:
    paths: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(f"{request.method} {request.url.path}")
        if request.method == "DELETE":
            return httpx.Response(204)
        return httpx.Response(202, json=job_object(QUEUED) | {"retry_of": "job_before"})

    job = call(handler, "retry", "job_before")
    assert (job.id, job.retry_of) == (JOB_ID, "job_before")
    assert call(handler, "delete", job) is None
    assert paths == ["POST /prefix/v1/jobs/job_before/retry", f"DELETE /prefix/v1/jobs/{JOB_ID}"]


def test_the_error_of_a_job_that_cannot_be_retried_says_why(call: Both) -> None:
    refusal = {"detail": f"{JOB_ID} has succeeded: there is nothing to repeat.", "code": "not_retryable"}
    with pytest.raises(ApiError, match="has succeeded") as caught:
        call(always(refusal, 409), "retry", JOB_ID)
    assert (caught.value.status, caught.value.code) == (409, "not_retryable")


def test_cancel_accepts_an_id_or_a_job(call: Both) -> None:
    paths: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(f"{request.method} {request.url.path}")
        return httpx.Response(202, json=job_object(RUNNING))

    job = call(handler, "cancel", JOB_ID)
    call(handler, "cancel", job)
    assert paths == [f"POST /prefix/v1/jobs/{JOB_ID}/cancel"] * 2


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, {"detail": "There is no job x.", "code": "not_found"}, NotFoundError, "There is no job x."),
        (
            422,
            {
                "detail": [
                    {"type": "t", "loc": ["body", "max_tokens"], "msg": "Too large", "input": 1},
                    {"type": "t", "loc": ["body", "stop", 0], "msg": "Too short", "input": 1},
                ]
            },
            InvalidRequestError,
            "max_tokens: Too large; stop.0: Too short",
        ),
        (
            422,
            {"detail": "Bad.", "errors": [{"detail": "Bad.", "pointer": "#/top_k"}]},
            InvalidRequestError,
            "top_k: Bad.",
        ),
        (
            422,
            {"detail": "Two are wrong.", "errors": [{"detail": "At 0.", "pointer": "#/prompt"}]},
            InvalidRequestError,
            "Two are wrong. prompt: At 0.",
        ),
        (
            422,
            {
                "detail": "Three are wrong.",
                "errors": [
                    *({"detail": f"At {n}.", "pointer": "#/prompt"} for n in range(10)),
                    {"detail": "Too large.", "pointer": "#/top_k"},
                ],
            },
            InvalidRequestError,
            "Three are wrong. prompt: At 0. top_k: Too large. (and more)",
        ),
        (422, {"detail": "a: Bad.", "errors": [{"detail": "Bad.", "pointer": "#/a"}]}, InvalidRequestError, "a: Bad."),
        (405, {"detail": "Method Not Allowed"}, ApiError, "Method Not Allowed"),
    ],
)
def test_errors_have_the_servers_own_message(
    call: Both, status: int, body: Any, kind: type[ApiError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call(always(body, status), "job", "x")
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.status) == (message, status)


@pytest.mark.parametrize(
    "response",
    [
        (200, b"<html>It works!</html>"),
        (200, b'{"hello": "world"}'),
        (200, b"[]"),
        (404, b"nginx"),
        (301, b""),
    ],
)
def test_the_response_of_another_server_is_an_unexpected_answer_error(call: Both, response: tuple[int, bytes]) -> None:
    status, content = response
    with pytest.raises(UnexpectedAnswerError, match="not Celeriac's"):
        call(lambda _: httpx.Response(status, content=content), "job", JOB_ID)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_and_an_exit_from_a_signal_handler_cancel_the_generation(interruption: type[BaseException]) -> None:
    requests: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(f"{request.url.path} {request.headers.get('Prefer', '')}".strip())
        if len(requests) == 1:
            raise interruption
        return httpx.Response(202, json=job_object(RUNNING))

    with InferenceClient(transport=httpx.MockTransport(handler)) as client, pytest.raises(interruption):
        client.generate("1+1=")
    assert requests == ["/generate wait=20", "/generate respond-async", f"/v1/jobs/{JOB_ID}/cancel"]


async def test_cancelling_the_task_cancels_the_generation(anyio_backend: str) -> None:
    waiting = asyncio.Event()
    requests: list[str] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request.url.path)
        if len(requests) == 1:
            waiting.set()
            await asyncio.Event().wait()
        return httpx.Response(202, json=job_object(RUNNING))

    async with AsyncInferenceClient(transport=httpx.MockTransport(handler)) as client:
        task = asyncio.create_task(client.generate("1+1="))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert requests == ["/generate", "/generate", f"/v1/jobs/{JOB_ID}/cancel"]


def test_both_clients_have_the_same_operations() -> None:
    def operations(kind: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(member)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and name not in ("close", "aclose")
        }

    synchronous, asynchronous = operations(InferenceClient), operations(AsyncInferenceClient)
    assert synchronous.keys() == asynchronous.keys()
    for name, signature in synchronous.items():
        assert signature.parameters == asynchronous[name].parameters, name


def test_a_job_and_its_errors_can_be_pickled() -> None:
    job = Job.from_json(job_object(RUNNING))
    assert pickle.loads(pickle.dumps(job)) == job
    with pytest.raises(celeriac.JobFailedError) as caught:
        job.result()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.job) == (str(caught.value), job)
    error = NotFoundError("gone", status=404, code="not_found")
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.status, copied.code) == ("gone", 404, "not_found")


def test_the_repr_of_a_job_is_short() -> None:
    job = Job.from_json(job_object(RUNNING, completion="long " * 1000, metadata={"key": "long " * 1000}))
    assert repr(job) == f"<Job {JOB_ID} running, 1 of 8 tokens>"


def test_the_package_exports_every_public_name() -> None:
    assert celeriac.__all__ == sorted(celeriac.__all__)
    for name in celeriac.__all__:
        assert getattr(celeriac, name).__name__ == name
    with pytest.raises(AttributeError):
        celeriac.nothing  # noqa: B018


def test_importing_the_client_imports_no_server_package() -> None:
    heavy = ["redis", "celery", "pydantic", "torch", "fastapi", "api", "worker", "tasks"]
    code = f"import sys, celeriac; celeriac.InferenceClient(); print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(found) == []
