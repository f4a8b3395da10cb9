"""The scheduler: which sequences decode, prefill and wait. No model and no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.requests import sequence_request
from worker.engine.kv.allocator import Extent
from worker.engine.kv.budget import BLOCK_TOKENS, KvBudget
from worker.engine.philox import UniformStream
from worker.engine.scheduler import Chunk, Scheduler
from worker.engine.sequence import Sequence
from worker.engine.stop_criteria import StopCriteria
from worker.engine.vocabulary import Vocabulary

VOCABULARY = Vocabulary(4, (b"a",) * 4)


def sequence(name: str, prompt: int, answer: int, *, alone: int = 0, resumed: int = 0) -> Sequence:
    request = sequence_request(id=name, prompt=(0,) * prompt, max_tokens=answer, alone=alone, generated=(1,) * resumed)
    return Sequence(
        request=request,
        tokens=list(request.generated),
        stop_criteria=StopCriteria(request, VOCABULARY),
        uniforms=UniformStream(0),
        deadline=None,
        reported=0,
    )


def scheduler(*, tokens: int = 10_000, slots: int = 4, chunk: int = 8) -> Scheduler:
    return Scheduler(KvBudget(tokens), slots=slots, prefill_chunk_tokens=chunk)


def admit(policy: Scheduler) -> list[str]:
    """Admit sequences and give each an extent, like the engine."""
    admitted = policy.admit()
    for one in admitted:
        one.extent = Extent(0, policy.need(one))
    return [one.id for one in admitted]


def run(policy: Scheduler) -> list[Chunk]:
    """Run one step in which every drawn token is 1."""
    chunks = policy.plan()
    for chunk in chunks:
        chunk.extent.filled = chunk.end
        if chunk.draws:
            chunk.sequence.tokens.append(1)
    return chunks


def test_it_works_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; "
        "import worker.engine.scheduler, worker.engine.kv.budget, worker.engine.request, worker.engine.update"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_sequences_are_admitted_in_order_of_arrival() -> None:
    policy = scheduler(slots=2)
    for name in "abc":
        policy.add(sequence(name, 3, 3))
    assert admit(policy) == ["a", "b"]
    assert admit(policy) == []
    policy.remove(policy.running[0])
    assert admit(policy) == ["c"]


def test_no_sequence_overtakes_one_that_waits_for_memory() -> None:
    policy = scheduler(tokens=4 * BLOCK_TOKENS)
    policy.add(sequence("a", 2 * BLOCK_TOKENS, BLOCK_TOKENS))
    policy.add(sequence("large", 2 * BLOCK_TOKENS, BLOCK_TOKENS))
    policy.add(sequence("small", 1, 1))
    assert admit(policy) == ["a"]
    assert admit(policy) == []
    policy.remove(policy.running[0])
    assert admit(policy) == ["large", "small"]


def test_a_sequence_that_needs_too_much_memory_is_refused_at_once() -> None:
    policy = scheduler(tokens=4 * BLOCK_TOKENS)
    with pytest.raises(ValueError, match="there is room for 128"):
        policy.add(sequence("a", 4 * BLOCK_TOKENS, 1))
    policy.add(sequence("b", 4 * BLOCK_TOKENS - 1, 1))


def test_prompts_are_prefilled_in_chunks_while_other_rows_decode() -> None:
    policy = scheduler(chunk=8)
    policy.add(sequence("short", 2, 10))
    policy.add(sequence("long", 20, 10))
    admit(policy)
    steps = [[(chunk.sequence.id, chunk.start, chunk.length, chunk.draws) for chunk in run(policy)] for _ in range(5)]
    assert steps == [
        [("short", 0, 2, True), ("long", 0, 6, False)],
        [("short", 2, 1, True), ("long", 6, 8, False)],
        [("short", 3, 1, True), ("long", 14, 6, True)],
        [("short", 4, 1, True), ("long", 20, 1, True)],
        [("short", 5, 1, True), ("long", 21, 1, True)],
    ]


def test_removing_a_running_sequence_releases_its_memory_and_a_waiting_one_has_none() -> None:
    policy = scheduler(tokens=2 * BLOCK_TOKENS)
    a, b = sequence("a", 1, BLOCK_TOKENS), sequence("b", 1, 1)
    policy.add(a)
    policy.add(b)
    admit(policy)
    policy.remove(b)
    assert policy.kv_budget.free == 0
    policy.remove(a)
    assert policy.kv_budget.free == 2 * BLOCK_TOKENS


def ids(chunks: list[Chunk]) -> list[str]:
    return [chunk.sequence.id for chunk in chunks]


def test_a_suspect_runs_alone_while_the_others_keep_their_rows() -> None:
    policy = scheduler(chunk=8)
    other = sequence("other", 3, 10)
    policy.add(other)
    admit(policy)
    assert ids(run(policy)) == ["other"]
    policy.add(sequence("suspect", 12, 10, alone=2))
    policy.add(sequence("late", 3, 10))
    assert admit(policy) == ["suspect", "late"]
    assert [(chunk.sequence.id, chunk.start, chunk.length, chunk.draws) for _ in range(3) for chunk in run(policy)] == [
        ("suspect", 0, 8, False),
        ("suspect", 8, 4, True),
        ("suspect", 12, 1, True),
    ]
    assert (other.cached, len(other.tokens)) == (3, 1), "its state does not change"
    assert policy.suspect is None
    assert ids(run(policy)) == ["other", "suspect", "late"]


def test_tokens_of_earlier_attempts_do_not_count_as_decoded_alone() -> None:
    policy = scheduler(chunk=8)
    policy.add(sequence("suspect", 2, 10, alone=1, resumed=4))
    policy.add(sequence("other", 1, 10))
    admit(policy)
    assert ids(run(policy)) == ["suspect"]
    assert ids(run(policy)) == ["suspect", "other"]


def test_of_two_suspects_the_first_runs_first_and_the_second_after_its_end() -> None:
    policy = scheduler()
    first, second = sequence("first", 1, 10, alone=2), sequence("second", 1, 10, alone=1)
    for one in (first, sequence("other", 1, 10), second):
        policy.add(one)
    admit(policy)
    assert ids(run(policy)) == ["first"]
    assert policy.suspect is first
    policy.remove(first)
    assert policy.suspect is second
    assert ids(run(policy)) == ["second"]
    assert ids(run(policy)) == ["other", "second"]


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 40), st.sampled_from([0, 0, 1, 2, 50])), min_size=1, max_size=20
    ),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_every_sequence_finishes_in_bounded_steps_and_all_limits_hold(
    sizes: list[tuple[int, int, int]], slots: int, chunk: int
) -> None:
    policy = scheduler(tokens=6 * BLOCK_TOKENS, slots=slots, chunk=chunk)
    for number, (prompt, answer, alone) in enumerate(sizes):
        policy.add(sequence(str(number), prompt, answer, alone=alone))
    order: list[str] = []
    bound = sum(prompt + answer for prompt, answer, _ in sizes)
    for _ in range(bound):
        order += admit(policy)
        planned = policy.running if policy.suspect is None else [policy.suspect]
        ready = {one.id for one in planned if one.length - one.cached == 1}
        chunks = run(policy)
        assert {chunk.sequence for chunk in chunks} <= {*planned}
        assert chunks, "a step runs something while there is work"
        assert len(policy.running) <= slots
        assert 0 <= policy.kv_budget.free <= 6 * BLOCK_TOKENS
        assert sum(chunk.length for chunk in chunks if chunk.sequence.id not in ready) <= policy.prefill_chunk_tokens
        assert ready == {chunk.sequence.id for chunk in chunks[: len(ready)]}, (
            "every decoding row decodes and comes first"
        )
        for one in [*policy.running]:
            if len(one.tokens) == one.request.sampling.max_tokens:
                policy.remove(one)
        if not policy.running and not policy.waiting:
            break
    assert order == [str(number) for number in range(len(sizes))]
    assert policy.kv_budget.reserved == 0


def test_a_sequence_with_a_leader_keeps_its_row_and_is_not_prefilled() -> None:
    policy = scheduler(chunk=8)
    leader, dependent, other = sequence("leader", 12, 10), sequence("dependent", 12, 10), sequence("other", 9, 10)
    for one in (leader, dependent, other):
        policy.add(one)
    assert admit(policy) == ["leader", "dependent", "other"]
    dependent.leader = leader
    steps = [[(chunk.sequence.id, chunk.start, chunk.length) for chunk in run(policy)] for _ in range(2)]
    assert steps == [[("leader", 0, 8)], [("leader", 8, 4), ("other", 0, 4)]], "those behind it may use what is left"
    dependent.leader = None
    dependent.extent = Extent(0, 32, filled=11)
    assert [(chunk.sequence.id, chunk.start, chunk.length) for chunk in run(policy)] == [
        ("leader", 12, 1),
        ("dependent", 11, 1),
        ("other", 4, 5),
    ]
