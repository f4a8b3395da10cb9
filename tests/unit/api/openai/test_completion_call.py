"""From the body of `POST /v1/completions` to the jobs of the call."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from api.http.problems import ApiError
from tasks.sampling_params import MAX_TOKENS_LIMIT, SamplingParams
from tests.unit.api.openai.bodies import completion


def test_openai_s_defaults() -> None:
    call = completion()
    [generation] = call.generations
    assert generation.prompt == "1+1="
    assert (generation.prompt_ids, generation.messages, generation.choice, generation.add_bos) == (None, None, 0, None)
    seed = generation.sampling.seed
    assert generation.sampling == SamplingParams(max_tokens=16, temperature=1.0, seed=seed)
    assert (call.model, call.priority, call.stream, call.echo, call.logprobs, call.ignored) == (
        None,
        5,
        False,
        False,
        False,
        (),
    )


def test_what_langchain_always_sends_changes_nothing() -> None:
    always = {
        "temperature": 0.7,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "best_of": 1,
        "logit_bias": {},
        "seed": None,
        "logprobs": None,
        "max_tokens": 256,
        "user": "me",
        "stop": None,
        "suffix": None,
    }
    call = completion(**always)
    sampling = call.generations[0].sampling
    assert sampling == SamplingParams(max_tokens=256, temperature=0.7, seed=sampling.seed)
    assert call.ignored == ()


def test_every_sampling_field_arrives() -> None:
    call = completion(
        max_tokens=8,
        temperature=0,
        top_p=0.5,
        top_k=4,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        logit_bias={"7": -100},
        stop=["a", "", "b", "a"],
        stop_token_ids=[3, 3],
        ignore_eos=True,
        min_tokens=2,
        seed=9,
        logprobs=0,
    )
    assert call.generations[0].sampling == SamplingParams(
        max_tokens=8,
        temperature=0.0,
        top_p=0.5,
        top_k=4,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=1.5,
        logit_bias=((7, -100.0),),
        stop=("a", "b"),
        stop_token_ids=(3,),
        ignore_eos=True,
        min_tokens=2,
        seed=9,
        logprobs=0,
    )
    assert call.logprobs


def test_choices_are_prompt_major_and_share_a_seed() -> None:
    call = completion(prompt=["a", "b"], n=2)
    assert [(one.prompt, one.choice) for one in call.generations] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert len({one.sampling.seed for one in call.generations}) == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [("a", None)]),
        (["a"], [("a", None)]),
        ([1, 2], [("", (1, 2))]),
        ([[1], [2, 3]], [("", (1,)), ("", (2, 3))]),
        (["a", [4]], [("a", None), ("", (4,))]),
    ],
)
def test_kinds_of_prompts(prompt: Any, expected: Any) -> None:
    assert [(one.prompt, one.prompt_ids) for one in completion(prompt=prompt).generations] == expected


@pytest.mark.parametrize(
    "prompt", ["", [], [""], [[]], None, 3, [None], [True], [[True]], [[1.0]], [1, "a"], [[1], []], [-1], [2**31], {}]
)
def test_prompts_that_are_none(prompt: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        completion(prompt=prompt)
    [error] = raised.value.errors()
    assert (error["loc"], error["type"]) == (("prompt",), "prompt_type")
    assert error["msg"].startswith("A prompt is a")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 65}, "stop"),
        ({"temperature": 2.1}, "temperature"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"priority": 10}, "priority"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_values_out_of_bounds(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as raised:
        completion(**fields)
    assert raised.value.errors()[0]["loc"][0] == param


@pytest.mark.parametrize(("prompts", "n"), [(65, 2), (129, 1), (1, 128)])
def test_a_call_has_at_most_128_jobs(prompts: int, n: int) -> None:
    if prompts * n <= 128:
        assert len(completion(prompt=["a"] * prompts, n=n).generations) == 128
        return
    with pytest.raises(ApiError, match=str(prompts * n)) as raised:
        completion(prompt=["a"] * prompts, n=n)
    assert raised.value.errors[0].path == ("n" if n > 1 else "prompt",)


def test_max_tokens_above_the_limit_is_reduced() -> None:
    assert completion(max_tokens=10**6).generations[0].sampling.max_tokens == MAX_TOKENS_LIMIT


def test_no_tokens_need_echo() -> None:
    with pytest.raises(ApiError, match="echo"):
        completion(max_tokens=0)
    call = completion(max_tokens=0, echo=True)
    assert call.prompt_only
    assert call.generations[0].sampling.max_tokens == 1


def test_echo_with_logprobs_asks_for_those_of_the_prompt() -> None:
    sampling = completion(prompt=[[1, 2]], echo=True, logprobs=1, max_tokens=1).generations[0].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (1, 1)
    sampling = completion(logprobs=1).generations[0].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (1, None)
    sampling = completion(echo=True).generations[0].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (None, None)


def test_bos_can_be_left_out_of_texts() -> None:
    assert completion(add_special_tokens=False).generations[0].add_bos is False
    assert completion(add_special_tokens=True).generations[0].add_bos is None


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, (False, False)),
        ({"stream_options": None}, (False, False)),
        ({"stream_options": {"include_usage": True}}, (True, False)),
        ({"stream_options": {"include_usage": True, "continuous_usage_stats": True}}, (True, True)),
        ({"stream_options": {"continuous_usage_stats": True}}, (False, False)),
    ],
)
def test_stream_options(fields: dict[str, Any], counts: tuple[bool, bool]) -> None:
    call = completion(stream=True, **fields)
    assert (call.include_usage, call.continuous_usage) == counts


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({"service_tier": "flex"}, 8),
        ({"service_tier": "priority"}, 1),
        ({"service_tier": "auto"}, 5),
        ({"service_tier": "flex", "priority": 0}, 0),
    ],
)
def test_priorities(fields: dict[str, Any], priority: int) -> None:
    assert completion(**fields).priority == priority
