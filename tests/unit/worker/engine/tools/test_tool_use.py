"""The ids that follow a tool's input, and how a replayed answer continues."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.tools.calculator import MAX_EXPRESSION
from worker.engine.tools.tool_ids import ToolIds
from worker.engine.tools.tool_use import ToolUse

IDS = ToolIds(python_start=1001, python_end=1002, output_start=1003, output_end=1004)
START, END = IDS.python_start, IDS.python_end


def encode(text: str) -> tuple[int, ...]:
    """One token a character."""
    return tuple(map(ord, text))


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def tool_use() -> ToolUse:
    return ToolUse(IDS, decode, encode)


def pushed(use: ToolUse, tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [use.push(token) for token in tokens]


def output(text: str) -> tuple[int, ...]:
    return (IDS.output_start, *encode(text), IDS.output_end)


def test_the_result_follows_the_end_of_the_expression() -> None:
    results = pushed(tool_use(), [*encode("so "), START, *encode("12*12"), END])
    assert results[:-1] == [()] * (len(results) - 1)
    assert results[-1] == output("144")


def test_a_second_block_has_a_result_of_its_own() -> None:
    use = tool_use()
    for expression, result in (("1+1", "2"), ("2+3", "5")):
        assert pushed(use, [START, *encode(expression), END])[-1] == output(result)
        assert pushed(use, output(result))[-1] == ()


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param([*encode("1+1"), END], id="an end without a start"),
        pytest.param([START, END], id="an empty block"),
        pytest.param([START, *encode("1/0"), END], id="no result"),
        pytest.param([START, *encode("hello"), END], id="no expression"),
        pytest.param([START, *encode("1+1")], id="no end"),
        pytest.param([START, *encode("1+1"), IDS.output_start, END], id="an output in the input"),
        pytest.param([START, *encode("1" * (MAX_EXPRESSION + 1)), END], id="a block that is too long"),
    ],
)
def test_nothing_follows_what_is_no_complete_expression(tokens: list[int]) -> None:
    assert pushed(tool_use(), tokens) == [()] * len(tokens)


def test_a_start_in_a_block_begins_it_again() -> None:
    assert pushed(tool_use(), [START, *encode("9+"), START, *encode("1+1"), END])[-1] == output("2")


def test_a_block_that_was_too_long_does_not_disturb_the_next() -> None:
    use = tool_use()
    pushed(use, [START, *encode("1" * 1000), END])
    assert pushed(use, [START, *encode("1+1"), END])[-1] == output("2")


def test_other_tokens_than_the_forced_ones_end_the_forcing() -> None:
    use = tool_use()
    assert pushed(use, [START, *encode("1+1"), END])[-1] == output("2")
    assert pushed(use, encode("so")) == [(), ()]


parts = st.sampled_from([*encode("12+*x"), START, START, END, END, IDS.output_start, IDS.output_end])


@settings(deadline=None)
@given(st.lists(parts, max_size=30), st.data())
def test_an_answer_that_is_replayed_up_to_any_token_continues_as_it_would_have(
    sampled: list[int], data: st.DataObject
) -> None:
    whole = tool_use()
    answer: list[int] = []
    after: list[tuple[int, ...]] = []
    for token in sampled:
        answer.append(token)
        after.append(whole.push(token))
        while after[-1]:
            answer.append(after[-1][0])
            after.append(whole.push(answer[-1]))
    kept = data.draw(st.integers(0, len(answer)))
    assert pushed(tool_use(), answer[:kept]) == after[:kept]
