"""The endpoints of the original guide: bodies, bounds, messages, headers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tasks.job import ErrorCode, JobError
from tasks.job_id import JOB_ID
from tasks.sampling_params import SAMPLING_FIELDS
from tests.helpers.api_client import DEADLINE_S, api, settings_for
from tests.helpers.fake_worker import BPE_CARD, CARD, fake_worker

pytestmark = pytest.mark.anyio

GUIDE_BODY = {"prompt": "123+456=", "max_tokens": 100, "temperature": 0.8, "top_k": None, "stop_on_newline": False}


async def job_of(client: httpx.AsyncClient, response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(response.headers["location"])).json()
    return found


async def test_the_guides_request_gets_the_guides_response(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            response = await client.post("/generate", json=GUIDE_BODY)
            assert response.status_code == 200
            assert response.json() == {
                "prompt": "123+456=",
                "generated_text": "123+456=579",
                "tokens_generated": 3,
                "model": "step_002920",
            }
            assert JOB_ID.fullmatch(response.headers["x-job-id"])
            assert response.headers["location"] == f"/v1/jobs/{response.headers['x-job-id']}"
            assert "queue;dur=" in response.headers["server-timing"]
            assert "preference-applied" not in response.headers
            assert (await job_of(client, response))["status"] == "succeeded"


#: Values of the fields beyond the guide's, with which they have no effect.
EFFECTLESS: dict[str, Any] = {
    **{field.name: field.default for field in SAMPLING_FIELDS if field.name != "seed"},
    **{"logit_bias": {}, "stop_token_ids": []},
    **dict.fromkeys(("prompt_token_ids", "messages", "tools")),
}


async def test_defaults_are_the_guides(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            job = await job_of(client, await client.post("/generate", json={"prompt": "1"}))
    seed = job["input"].pop("seed")
    assert 0 <= seed < 2**53
    assert job["input"] == {
        **EFFECTLESS,
        "prompt": "1",
        "max_tokens": 100,
        "temperature": 0.8,
        "top_k": None,
        "top_p": None,
        "stop_on_newline": False,
        "stop": [],
        "ignore_eos": False,
    }


async def test_fields_beyond_the_guides_reach_the_job(redis_url: str) -> None:
    settings = settings_for(redis_url)
    asked = {"prompt": "1", "top_p": 0.5, "seed": 7, "stop": ["9", "ab"], "ignore_eos": True, "top_k": 32}
    asked |= {"min_p": 0.25, "presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 10.0}
    asked |= {"logit_bias": {"7": -100.0, "31": 0.5}, "stop_token_ids": [3, 4], "min_tokens": 2}
    asked |= {"logprobs": 20, "prompt_logprobs": 0}
    async with api(settings) as client:
        with fake_worker(settings):
            job = await job_of(client, await client.post("/generate", json=asked))
    assert asked.items() <= job["input"].items()


async def test_before_a_worker_has_loaded(redis_url: str) -> None:
    async with api(settings_for(redis_url)) as client:
        response = await client.post("/generate", json=GUIDE_BODY)
        assert (response.status_code, response.json()) == (503, {"detail": "Model not loaded"})
        assert int(response.headers["retry-after"]) >= 1
        info = await client.get("/info")
        assert (info.status_code, info.json()) == (503, {"detail": "Model not loaded"})
        root = (await client.get("/")).json()
        assert (root["status"], root["checkpoint"]) == ("loading", "unknown")


async def test_info_and_root(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            assert (await client.get("/info")).json() == {
                "checkpoint": "step_002920",
                "step": 2920,
                "val_loss": 0.2627,
                "model_layers": 4,
                "model_dim": 128,
                "vocab_size": 32,
            }
            assert (await client.get("/")).json() == {
                "service": "Inference API",
                "version": "1.0.0",
                "checkpoint": "step_002920",
                "status": "running",
                "endpoints": {
                    "POST /generate": "Generate text from prompt",
                    "GET /health": "Health check",
                    "GET /info": "Model information",
                    "GET /docs": "Interactive API documentation",
                },
            }
        # The card outlives its worker.
        assert (await client.get("/info")).status_code == 200


@pytest.mark.parametrize(("loss", "loss_name"), [(None, None), (0.9, "val_bpb")])
async def test_val_loss_is_null_without_a_loss_or_with_another_kind_of_loss(
    redis_url: str, loss: float | None, loss_name: str | None
) -> None:
    settings = settings_for(redis_url)
    card = replace(CARD, loss=loss, loss_name=loss_name, step=None)
    async with api(settings) as client:
        with fake_worker(settings, card):
            info = (await client.get("/info")).json()
    assert info["val_loss"] is None
    assert info["step"] is None


async def test_the_documentation_is_served(redis_url: str) -> None:
    async with api(settings_for(redis_url)) as client:
        assert (await client.get("/docs")).status_code == 200
        document = (await client.get("/openapi.json")).json()
    assert (document["info"]["title"], document["info"]["version"]) == ("Inference API", "1.0.0")
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert (fields["max_tokens"]["minimum"], fields["max_tokens"]["maximum"], fields["max_tokens"]["default"]) == (
        1,
        2048,
        100,
    )
    assert (fields["temperature"]["minimum"], fields["temperature"]["maximum"]) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("changed", "field", "kind"),
    [
        ({"prompt": ""}, "prompt", "string_too_short"),
        ({"prompt": None}, "prompt", "string_type"),
        ({"max_tokens": 0}, "max_tokens", "greater_than_equal"),
        ({"max_tokens": 2049}, "max_tokens", "less_than_equal"),
        ({"max_tokens": 10**30}, "max_tokens", "less_than_equal"),
        ({"max_tokens": 1.5}, "max_tokens", "int_from_float"),
        ({"temperature": -0.1}, "temperature", "greater_than_equal"),
        ({"temperature": 2.1}, "temperature", "less_than_equal"),
        ({"temperature": "nan"}, "temperature", "finite_number"),
        ({"top_k": 0}, "top_k", "greater_than_equal"),
        ({"top_k": 33}, "top_k", "less_than_equal"),
        ({"top_p": 0}, "top_p", "greater_than"),
        ({"seed": -1}, "seed", "greater_than_equal"),
        ({"seed": 2**53}, "seed", "less_than"),
        ({"stop": [""]}, "stop", "string_too_short"),
        ({"stop": ["1"] * 17}, "stop", "too_long"),
        ({"min_p": 1.01}, "min_p", "less_than_equal"),
        ({"presence_penalty": -2.01}, "presence_penalty", "greater_than_equal"),
        ({"frequency_penalty": 2.01}, "frequency_penalty", "less_than_equal"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater_than"),
        ({"repetition_penalty": 10.5}, "repetition_penalty", "less_than_equal"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias", "less_than_equal"),
        ({"logit_bias": {"5": "nan"}}, "logit_bias", "finite_number"),
        ({"logit_bias": {"-5": 1}}, "logit_bias", "string_pattern_mismatch"),
        ({"logit_bias": {"05": 1}}, "logit_bias", "string_pattern_mismatch"),
        ({"logit_bias": [[5, 1]]}, "logit_bias", "dict_type"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "greater_than_equal"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids", "less_than_equal"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids", "too_long"),
        ({"min_tokens": -1}, "min_tokens", "greater_than_equal"),
        ({"logprobs": 21}, "logprobs", "less_than_equal"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "greater_than_equal"),
        ({"stop_on_newline": "perhaps"}, "stop_on_newline", "bool_parsing"),
    ],
)
async def test_bounds(redis_url: str, changed: dict[str, Any], field: str, kind: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            response = await client.post("/generate", json={**GUIDE_BODY, **changed})
    assert response.status_code == 422
    [error] = response.json()["detail"]
    assert error["loc"][:2] == ["body", field]
    assert error["type"] == kind
    assert error["msg"]


async def test_an_unknown_character_is_refused_with_its_place(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            response = await client.post("/generate", json={"prompt": "12€=é"})
    assert response.status_code == 422
    first, second = response.json()["detail"]
    assert first["ctx"] == {"index": 2, "character": "€"}
    assert second["ctx"] == {"index": 4, "character": "é"}
    assert "'€' (U+20AC) at index 2" in first["msg"]


async def test_an_unknown_character_is_skipped_if_the_card_says_so(redis_url: str) -> None:
    settings = settings_for(redis_url)
    card = replace(CARD, tokenizer=replace(CARD.tokenizer, unknown="skip"))
    async with api(settings) as client:
        with fake_worker(settings, card) as worker:
            worker.warnings = ["Left out: '€'"]
            response = await client.post("/generate", json={"prompt": "1€€2"})
            assert response.status_code == 200
            # The worker warns about what it left out.
            assert json.loads(response.headers["x-job-warnings"]) == ["Left out: '€'"]
            assert (await job_of(client, response))["warnings"] == ["Left out: '€'"]


async def test_a_prompt_that_fills_the_context_is_refused(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            # The context has 64 tokens: one is for BOS, and one is for the answer.
            assert (await client.post("/generate", json={"prompt": "1" * 62})).status_code == 200
            response = await client.post("/generate", json={"prompt": "1" * 63})
    assert response.status_code == 422
    [error] = response.json()["detail"]
    assert (error["type"], error["loc"]) == ("prompt_too_long", ["body", "prompt"])


async def test_a_prompt_that_can_have_no_tokenization_that_fits_is_refused(redis_url: str) -> None:
    """Only the worker has the tokenizer, but the longest token bounds the number of tokens from below."""
    settings = settings_for(redis_url)
    card = replace(BPE_CARD, tokenizer=replace(BPE_CARD.tokenizer, longest_token_bytes=4))
    async with api(settings) as client:
        with fake_worker(settings, card):
            # The context has 1,024 tokens: one is for BOS, and one is for the answer.
            assert (await client.post("/generate", json={"prompt": "é" * 2 * 1022})).status_code == 200
            for prompt in ("é" * 2 * 1022 + "x", "x" * 900_000):
                response = await client.post("/generate", json={"prompt": prompt})
                assert response.status_code == 422
                [error] = response.json()["detail"]
                assert (error["type"], error["loc"]) == ("prompt_too_long", ["body", "prompt"])
                assert "at least" in error["msg"]
            assert len((await client.get("/v1/jobs")).json()["data"]) == 1


async def test_a_prompt_that_the_worker_refuses_is_the_same_error(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings, BPE_CARD) as worker:
            worker.rejection = JobError(ErrorCode.PROMPT_TOO_LONG, "The prompt has 5000 tokens.", retryable=False)
            response = await client.post("/generate", json={"prompt": "long"})
    assert response.status_code == 422
    body = response.json()
    assert [(error["type"], error["loc"]) for error in body["detail"]] == [("prompt_too_long", ["body", "prompt"])]
    assert body["job_id"] == response.headers["x-job-id"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.INTERNAL, 500),
        (ErrorCode.OUT_OF_MEMORY, 503),
        (ErrorCode.WORKER_LOST, 503),
        (ErrorCode.CHECKPOINT_CHANGED, 503),
        (ErrorCode.DEADLINE_EXCEEDED, 504),
    ],
)
async def test_the_error_of_a_failed_job_is_the_response(redis_url: str, code: ErrorCode, status: int) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.error = JobError(code, "It broke.", retryable=True)
            response = await client.post("/generate", json=GUIDE_BODY)
    assert response.status_code == status
    assert response.json()["detail"].endswith("It broke.")
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["job_url"] == response.headers["location"]


async def test_a_job_that_is_cancelled_while_the_call_waits_is_409(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            call = asyncio.create_task(client.post("/generate", json=GUIDE_BODY))
            job_id = await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            await client.post(f"/v1/jobs/{job_id}/cancel")
            response = await call
    assert response.status_code == 409
    assert response.json()["job_id"] == job_id


async def test_after_the_longest_wait_a_504_names_the_job(redis_url: str) -> None:
    settings = settings_for(redis_url, sync_wait_s=0.2)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            response = await client.post("/generate", json=GUIDE_BODY)
            assert response.status_code == 504
            body = response.json()
            assert isinstance(body["detail"], str)
            assert body["job_url"] == response.headers["location"]
            assert response.headers["x-should-retry"] == "false"
            assert response.headers["retry-after"]
            # The job continues, and its text can be read later.
            worker.go.set()
            result = await client.get(f"{body['job_url']}/result", params={"wait": 5})
    assert result.json()["generated_text"] == "123+456=579"


async def test_after_the_longest_wait_the_status_may_be_set_to_202(redis_url: str) -> None:
    settings = settings_for(redis_url, sync_wait_s=0.2, generate_timeout_status=202)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            response = await client.post("/generate", json=GUIDE_BODY)
    assert response.status_code == 202
    assert response.json()["id"] == response.headers["x-job-id"]


async def test_prefer_wait(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            response = await client.post("/generate", json=GUIDE_BODY, headers={"Prefer": "wait=5"})
            assert response.status_code == 200
            assert response.headers["preference-applied"] == "wait=5"
            assert "Prefer" in response.headers["vary"]
            worker.go.clear()
            response = await client.post("/generate", json=GUIDE_BODY, headers={"Prefer": "respond-async, wait=0"})
            assert response.status_code == 202
            assert response.headers["preference-applied"] == "respond-async, wait=0"
            assert response.headers["retry-after"]
            assert response.json()["status"] in ("queued", "running")


async def test_prefer_respond_async(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            response = await client.post("/generate", json=GUIDE_BODY, headers={"Prefer": "respond-async"})
            assert response.status_code == 202
            assert response.headers["preference-applied"] == "respond-async"
            result = await client.get(response.json()["urls"]["result"], params={"wait": 5})
    assert result.json()["generated_text"] == "123+456=579"


async def test_a_repeated_request_with_a_key_makes_one_job(redis_url: str) -> None:
    settings = settings_for(redis_url)
    headers = {"Idempotency-Key": '"abc"'}
    async with api(settings) as client:
        with fake_worker(settings):
            first = await client.post("/generate", json=GUIDE_BODY, headers=headers)
            again = await client.post("/generate", json=GUIDE_BODY, headers=headers)
            other = await client.post("/generate", json={"prompt": "1"}, headers=headers)
            assert len((await client.get("/v1/jobs")).json()["data"]) == 1
        # The job is found even if the request could not be accepted now.
        late = await client.post("/generate", json=GUIDE_BODY, headers=headers)
    assert "idempotency-replayed" not in first.headers
    for replay in (again, late):
        assert replay.status_code == 200
        assert replay.headers["idempotency-replayed"] == "true"
        assert replay.headers["x-job-id"] == first.headers["x-job-id"]
    assert other.status_code == 422
    assert other.json()["detail"][0]["loc"] == ["header", "idempotency-key"]


async def test_a_full_queue_is_429(redis_url: str) -> None:
    settings = settings_for(redis_url, max_queued_jobs=1)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            async_ = {"Prefer": "respond-async"}
            running = await client.post("/generate", json=GUIDE_BODY, headers=async_)
            # A job that the worker claims later than the next requests would make room for one of them.
            await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            waiting = await client.post("/generate", json=GUIDE_BODY, headers=async_)
            refused = await client.post("/generate", json=GUIDE_BODY)
    assert (running.status_code, waiting.status_code) == (202, 202)
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert isinstance(refused.json()["detail"], str)


class TestSeveralCheckpoints:
    """`model` chooses one of several checkpoints."""

    async def test_without_a_model_the_error_lists_the_names(self, redis_url: str) -> None:
        settings = settings_for(redis_url)
        async with api(settings) as client:
            with fake_worker(settings), fake_worker(settings, BPE_CARD):
                response = await client.post("/generate", json={"prompt": "1"})
                assert response.status_code == 422
                assert response.json()["models"] == ["bpe", "step_002920"]
                assert "bpe, step_002920" in response.json()["detail"]
                chosen = await client.post("/generate", json={"prompt": "1", "model": "bpe"})
                assert chosen.json()["model"] == "bpe"
                assert (await client.get("/info", params={"model": "bpe"})).json()["vocab_size"] == 50304
                assert (await client.get("/info")).status_code == 422
                assert (await client.get("/health")).json() == {
                    "status": "ok",
                    "model_loaded": True,
                    "checkpoint": "bpe, step_002920",
                }

    async def test_a_configured_default_is_used(self, redis_url: str) -> None:
        settings = settings_for(redis_url, default_checkpoint="bpe")
        async with api(settings) as client:
            with fake_worker(settings):
                # The default is not loaded yet, and no other checkpoint replaces it.
                response = await client.post("/generate", json={"prompt": "1"})
                assert (response.status_code, response.json()) == (503, {"detail": "Model not loaded"})
                with fake_worker(settings, BPE_CARD):
                    assert (await client.post("/generate", json={"prompt": "1"})).json()["model"] == "bpe"
                    assert (await client.get("/health")).json()["checkpoint"] == "bpe"

    async def test_an_unknown_model_is_404_and_lists_the_known_names(self, redis_url: str) -> None:
        settings = settings_for(redis_url)
        async with api(settings) as client:
            with fake_worker(settings):
                response = await client.post("/generate", json={"prompt": "1", "model": "../step_002920"})
        assert response.status_code == 404
        assert response.json()["models"] == ["step_002920"]

    async def test_without_a_model_the_only_served_checkpoint_is_used(self, redis_url: str) -> None:
        settings = settings_for(redis_url)
        async with api(settings) as client:
            with fake_worker(settings, BPE_CARD):
                pass
            with fake_worker(settings):
                assert (await client.post("/generate", json={"prompt": "1"})).json()["model"] == "step_002920"
                gone = await client.post("/generate", json={"prompt": "1", "model": "bpe"})
        assert gone.status_code == 503
        assert gone.json()["detail"].startswith("Model not loaded")
        assert gone.headers["retry-after"]

    async def test_without_any_worker_a_request_without_a_model_is_503(self, redis_url: str) -> None:
        """The cards of both checkpoints stay when their workers are gone."""
        settings = settings_for(redis_url)
        async with api(settings) as client:
            with fake_worker(settings), fake_worker(settings, BPE_CARD):
                pass
            answers = [await client.post(path, json={"prompt": "1"}) for path in ("/generate", "/v1/jobs")]
            for answer in answers:
                assert answer.status_code == 503
                assert answer.headers["retry-after"]
                assert answer.json()["detail"].startswith("Model not loaded: no worker serves a checkpoint now.")
                assert "bpe, step_002920" in answer.json()["detail"]
            assert answers[1].json()["code"] == "no_workers"

    async def test_without_any_worker_a_job_that_may_wait_has_to_name_one(self, redis_url: str) -> None:
        settings = settings_for(redis_url)
        patient = {"prompt": "1", "wait_for_worker": True}
        async with api(settings) as client:
            with fake_worker(settings), fake_worker(settings, BPE_CARD):
                pass
            unnamed = await client.post("/v1/jobs", json=patient)
            assert (unnamed.status_code, unnamed.json()["code"]) == (422, "model_required")
            assert unnamed.json()["detail"].startswith("Several checkpoints are known, and none is served now:")
            named = await client.post("/v1/jobs", json={**patient, "model": "bpe"})
            assert (named.status_code, named.json()["model"]) == (202, "bpe")
            info = await client.get("/info")
            assert (info.status_code, info.json()["models"]) == (422, ["bpe", "step_002920"])

    async def test_with_one_of_two_workers_that_one_is_used_also_by_a_job_that_may_wait(self, redis_url: str) -> None:
        settings = settings_for(redis_url)
        async with api(settings) as client:
            with fake_worker(settings, BPE_CARD):
                pass
            with fake_worker(settings):
                job = await client.post("/v1/jobs", json={"prompt": "1", "wait_for_worker": True})
        assert job.json()["model"] == "step_002920"

    async def test_a_configured_default_without_a_worker_is_503(self, redis_url: str) -> None:
        settings = settings_for(redis_url, default_checkpoint="bpe")
        async with api(settings) as client:
            with fake_worker(settings, BPE_CARD):
                pass
            with fake_worker(settings):
                answer = await client.post("/v1/jobs", json={"prompt": "1"})
                waiting = await client.post("/v1/jobs", json={"prompt": "1", "wait_for_worker": True})
        assert (answer.status_code, answer.json()["code"]) == (503, "no_workers")
        assert "no worker serves bpe now" in answer.json()["detail"]
        assert (waiting.status_code, waiting.json()["model"]) == (202, "bpe")
