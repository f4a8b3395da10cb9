"""Chats and completions lose their worker, their engine, their server and Redis: nobody can see it in the answers.

The calls of the first tests run once, through three faults in a row, and once without faults. A conversation runs on a
worker that reuses prefixes, and again on one that does not.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import httpx
import pytest

from bench.own_redis import OwnRedis
from bench.processes import children, stop_all
from tasks.job_id import group_ids
from tasks.token_log import TokenLog
from tests.faults.conftest import QUICK
from tests.helpers.answer_streams import AnswerStreamReader, joined
from tests.helpers.chat_checkpoint import write_chat_checkpoint
from tests.helpers.gate import Gate
from tests.helpers.tokenizer_files import SPECIALS, TEXT_IDS
from tests.integration.cluster import DEADLINE_S, Cluster, Engine, creep
from tests.integration.stack import START_S, Process, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CONTEXT = 512
SLOTS = 8
#: Tokens of each answer.
LENGTH = 240
IDS = {name: TEXT_IDS + index for index, name in enumerate(SPECIALS)}
PYTHON_START, PYTHON_END = IDS["<|python_start|>"], IDS["<|python_end|>"]
OUTPUT_END = IDS["<|output_end|>"]

_SAMPLING = {
    "seed": 11,
    "ignore_eos": True,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "repetition_penalty": 1.25,
    "min_p": 0.001,
}
#: Longest time until all jobs run again after a fault, in seconds.
FAULT_S = 60.0
#: The calls: their routes and bodies.
CALLS: list[tuple[str, dict[str, Any]]] = [
    (
        CHAT,
        {
            **_SAMPLING,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "How much is 1 + 2? <|user_end|>"},
            ],
            "n": 2,
            "max_tokens": LENGTH,
            "temperature": 1.1,
            "logprobs": True,
            "top_logprobs": 5,
            # The calculator has a call of its own.
            "logit_bias": {str(PYTHON_START): -100},
        },
    ),
    # Only these five tokens are possible: sums, and now and then one that the calculator computes.
    (
        CHAT,
        {
            "messages": [{"role": "user", "content": "Compute!"}],
            "max_tokens": LENGTH,
            "temperature": 1.5,
            "seed": 5,
            "logprobs": True,
            "logit_bias": {str(token): 100 for token in (PYTHON_START, PYTHON_END, *map(ord, "12+"))},
        },
    ),
    (
        COMPLETIONS,
        {
            **_SAMPLING,
            "prompt": ["the cat and the hat", [*range(60, 100)]],
            "n": 2,
            "max_tokens": LENGTH,
            "temperature": 0.9,
            "top_p": 0.95,
            "echo": True,
            "logprobs": 3,
        },
    ),
]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def jobs_of(body: dict[str, Any]) -> int:
    """The number of jobs of a call."""
    prompt = body.get("prompt", "")
    return int(body.get("n", 1)) * (len(prompt) if isinstance(prompt, list) else 1)


@dataclass
class World:
    """Redis, an API and workers."""

    redis: OwnRedis
    cluster: Cluster
    api: Process
    url: str
    #: The worker that is there after the faults.
    worker: Process | None = None

    def call(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """The whole answer of a call."""
        return httpx.post(self.url + path, json=body, headers=headers, timeout=START_S)

    def logs(self, first_id: str, body: dict[str, Any]) -> list[TokenLog]:
        """The token logs of the jobs of a call."""
        return [self.cluster.log(job_id) for job_id in group_ids(first_id, jobs_of(body))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    own = OwnRedis(folder, appendfsync="everysec")
    own.start()
    logs = tmp_path_factory.mktemp("chat")
    checkpoint = write_chat_checkpoint(logs, context=CONTEXT)
    cluster = Cluster(own.url, logs, checkpoint, slots=str(SLOTS), **QUICK)
    try:
        api, url = cluster.stack.api()
        yield World(own, cluster, api, url)
    finally:
        cluster.close()
        own.kill()
        shutil.rmtree(folder)


@dataclass
class Run:
    """One call, with faults and without."""

    path: str
    body: dict[str, Any]
    key: str
    streamed: dict[str, Any]
    logs: list[TokenLog]
    plain: dict[str, Any]
    plain_logs: list[TokenLog]


def in_expression(log: TokenLog) -> bool:
    """Whether a text that has used the calculator before ends inside another expression."""
    special = [one for one in log.token_ids if one >= TEXT_IDS]
    return OUTPUT_END in special and special[-1] == PYTHON_START


def replaced_engine(worker: Process, old: Engine) -> Engine:
    """The next engine of a worker, stopped before its first step."""
    pid = until(lambda: next((one for one in children(worker.pid) if one != old.pid), None), "a new engine")
    gate = Gate(pid)
    gate.allow(0)
    until(lambda: worker.output.count('"engine_restarted"') == 1, "the new engine", timeout_s=START_S)
    engine = Engine.of(pid)
    engine.stop()
    return engine


@dataclass
class Turn:
    """The second turn of a conversation, on a worker that reuses prefixes."""

    body: dict[str, Any]
    answer: dict[str, Any]
    #: Prompt tokens that each job of another owner found: the same request twice.
    cached_of_others: list[int | None]


@pytest.fixture(scope="module")
def first_worker(world: World) -> Process:
    return world.cluster.worker()


@pytest.fixture(scope="module")
def turn(world: World, first_worker: Process) -> Turn:
    messages = [{"role": "user", "content": "Tell me about the cat and the hat, and then about the other things."}]
    options = {"max_tokens": 40, "ignore_eos": True, "seed": 3, "temperature": 0.8, "logprobs": True}
    answered = world.call(CHAT, {**options, "messages": messages}).json()
    assert answered["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    said = answered["choices"][0]["message"]
    more = [*messages, {"role": "assistant", "content": said["content"]}, {"role": "user", "content": "And then?"}]
    body = {**options, "messages": more}
    answer = world.call(CHAT, body)
    generation = world.cluster.job(answer.headers["x-job-id"]).generation
    others = [world.cluster.finished(world.cluster.submit(generation)) for _ in range(2)]
    assert {job.owner for job in others} != {world.cluster.job(answer.headers["x-job-id"]).owner}
    return Turn(body, answer.json(), [job.cached_tokens for job in others])


@pytest.fixture(scope="module")
def runs(world: World, first_worker: Process, turn: Turn) -> list[Run]:
    cluster, first = world.cluster, first_worker
    engine = Engine(first)
    engine.stop()
    keys = [f"resumes-{index}" for index in range(len(CALLS))]
    streams = [
        AnswerStreamReader(world.url + path, {**body, **STREAM}, {"Idempotency-Key": key})
        for (path, body), key in zip(CALLS, keys, strict=True)
    ]
    ids = [group_ids(one.job_id, jobs_of(body)) for one, (_, body) in zip(streams, CALLS, strict=True)]
    all_ids = [job_id for group in ids for job_id in group]
    computing = ids[1][0]
    cluster.decode_a_little([engine], all_ids, tokens=10)
    second = cluster.worker()
    second_engine = Engine(second)
    second_engine.stop()

    # The worker is killed while the model writes an expression.
    creep([engine], lambda: in_expression(cluster.log(computing)))
    first.kill()

    def all_run(attempt: int) -> bool:
        # Each of them first makes a few tokens alone.
        jobs = [cluster.job(job_id) for job_id in all_ids]
        return all(job.attempt == attempt and job.tokens > job.resumed_tokens for job in jobs)

    creep([second_engine], lambda: all_run(2), timeout_s=FAULT_S)
    # The engine is killed when it has just forced a result of the calculator.
    creep([second_engine], lambda: cluster.token_ids(computing)[-1] == OUTPUT_END, steps=1, timeout_s=FAULT_S)
    second_engine.kill()
    engine = replaced_engine(second, second_engine)
    creep([engine], lambda: all_run(3), timeout_s=FAULT_S)
    # The worker stops in an orderly way. The next one reuses no prefixes, neither now nor in the runs without faults.
    third = cluster.worker(prefix_cache="off")
    assert second.terminate() == 0
    found = []
    for stream, (path, body), key in zip(streams, CALLS, keys, strict=True):
        streamed = joined(stream.chunks())
        plain = world.call(path, body)
        assert plain.status_code == httpx.codes.OK, plain.text
        logs, plain_logs = world.logs(stream.job_id, body), world.logs(plain.headers["x-job-id"], body)
        found.append(Run(path, body, key, streamed, logs, plain.json(), plain_logs))
    for worker in (second, third):
        assert "Traceback" not in worker.output
    world.worker = third
    return found


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice without what differs in each run."""
    return {**choice, "celeriac": choice["celeriac"]["tool_calls"]}


def test_the_streams_go_on_and_are_the_answers_without_faults(runs: list[Run]) -> None:
    for run in runs:
        assert len(run.streamed["choices"]) == jobs_of(run.body)
        assert [*map(without_ids, run.streamed["choices"])] == [*map(without_ids, run.plain["choices"])]
        assert {choice["celeriac"]["attempts"] for choice in run.streamed["choices"]} == {4}
        assert {choice["celeriac"]["attempts"] for choice in run.plain["choices"]} == {1}
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert {name: run.streamed["usage"][name] for name in counts} == {
            name: run.plain["usage"][name] for name in counts
        }
        assert run.plain["usage"]["completion_tokens"] == LENGTH * jobs_of(run.body)


def test_each_token_and_each_log_probability_is_that_of_a_run_without_faults(runs: list[Run]) -> None:
    for run in runs:
        for log, plain in zip(run.logs, run.plain_logs, strict=True):
            assert log.token_ids == plain.token_ids
            assert log.token_pieces == plain.token_pieces
            # The packed floats, bit for bit.
            assert log.token_logprobs == plain.token_logprobs
            assert len(log.token_logprobs) == LENGTH
            assert log.prompt_logprobs == plain.prompt_logprobs


def test_the_log_has_the_prompt_once(runs: list[Run]) -> None:
    for run in runs:
        for log in run.logs:
            with_prompt = [entry for entry in log.entries if entry.prompt_logprobs]
            assert len(with_prompt) == (1 if run.body.get("echo") else 0)


def test_the_calculator_is_used_as_without_faults_and_is_no_part_of_the_text(runs: list[Run]) -> None:
    [choice] = runs[1].streamed["choices"]
    [log] = runs[1].logs
    results = [call for call in choice["celeriac"]["tool_calls"] if call["output"]]
    assert len(results) == log.token_ids.count(OUTPUT_END) >= 2
    for call in results:
        assert int(call["output"]) == sum(int(number) for number in call["input"].split("+") if number)
    # What is left are the characters outside of all blocks.
    assert set(choice["message"]["content"]) <= set("12+")
    outside, is_outside = "", True
    for token in log.token_ids:
        if token >= TEXT_IDS:
            is_outside = token in (PYTHON_END, OUTPUT_END)
        elif is_outside:
            outside += chr(token)
    assert choice["message"]["content"] == outside


def test_a_repeated_call_with_the_key_has_the_same_answer(world: World, runs: list[Run]) -> None:
    for run in runs:
        again = world.call(run.path, run.body, **{"Idempotency-Key": run.key})
        assert again.headers["idempotency-replayed"] == "true"
        answer = again.json()
        assert (answer["id"], answer["created"]) == (run.streamed["id"], run.streamed["created"])
        assert answer["choices"] == run.streamed["choices"]
        assert answer["usage"] == run.streamed["usage"]


def test_a_second_turn_finds_the_first_one_and_has_the_text_of_a_worker_that_reuses_nothing(
    world: World, runs: list[Run], turn: Turn
) -> None:
    plain = world.call(CHAT, turn.body).json()
    assert [*map(without_ids, turn.answer["choices"])] == [*map(without_ids, plain["choices"])]
    cached = turn.answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 32 <= cached < turn.answer["usage"]["prompt_tokens"]
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_another_owner_finds_only_its_own_prefixes(turn: Turn) -> None:
    first, second = turn.cached_of_others
    assert first == 0
    assert second is not None
    assert second >= 32


def test_a_killed_server_breaks_the_connection_and_another_one_has_the_answer(world: World, runs: list[Run]) -> None:
    """Redis is paused meanwhile, too."""
    assert world.worker is not None
    engine = Engine(world.worker)
    stop_all([engine])
    path, body = CALLS[2]
    changed = {**body, "seed": 12}
    headers = {"Idempotency-Key": "killed-server"}
    stream = AnswerStreamReader(world.url + path, {**changed, **STREAM}, headers)
    first_id = stream.job_id
    world.cluster.decode_a_little([engine], group_ids(first_id, jobs_of(body)))
    until(lambda: "data: " in stream.text, "a chunk", timeout_s=DEADLINE_S)
    world.api.signal(SIGKILL)
    stream.wait()
    assert isinstance(stream.broken, httpx.RemoteProtocolError | httpx.ReadError)
    assert "[DONE]" not in stream.text
    _, world.url = world.cluster.stack.api()
    resumed = AnswerStreamReader(world.url + path, {**changed, **STREAM}, headers)
    assert resumed.job_id == first_id
    world.redis.signal(SIGSTOP)
    try:
        engine.resume()
        time.sleep(2)
    finally:
        world.redis.signal(SIGCONT)
    answer = joined(resumed.chunks())
    plain = world.call(path, changed).json()
    assert [*map(without_ids, answer["choices"])] == [*map(without_ids, plain["choices"])]
    assert {choice["celeriac"]["attempts"] for choice in answer["choices"]} == {1}
    # What the first server had sent is the beginning of the answer.
    for index, choice in enumerate(answer["choices"]):
        sent = [one["text"] for part in stream.parts() for one in part["choices"] if one["index"] == index]
        assert sent
        assert choice["text"].startswith("".join(sent))
