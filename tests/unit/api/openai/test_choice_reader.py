"""A choice is read from the log of its job: text, tokens, offsets, the prompt in front, the stop token behind."""

from __future__ import annotations

import math
from dataclasses import replace

from api.openai.choice_reader import LEAST_LOGPROB, ChoiceReader, Piece, ReadOptions, TokenItem
from api.openai.token_names import TokenNames
from tasks.generation import Generation
from tasks.logprobs import TokenLogprob, TokenLogprobs, pack
from tasks.sampling_params import SamplingParams
from tasks.token_log import Entry
from tests.unit.api.openai.vocabulary import BOS, EURO, VOCABULARY

SAMPLING = SamplingParams(seed=1, logprobs=1, prompt_logprobs=1)
NAMES = TokenNames(VOCABULARY)
PLAIN = ReadOptions(names=NAMES)
LOGPROBS = ReadOptions(names=NAMES, logprobs=True)


def record(token: int, logprob: float = -0.5, top: int = 1) -> TokenLogprobs:
    return TokenLogprobs(TokenLogprob(token, logprob), (TokenLogprob(top, -0.25),))


def packed(*tokens: int) -> bytes:
    return pack([record(token) for token in tokens], 1)


def item(token: int, offset: int) -> TokenItem:
    return TokenItem(token, -0.5, (TokenLogprob(1, -0.25),), offset)


def entries(*ids: int, pieces: tuple[str, ...]) -> list[Entry]:
    return [Entry(after=len(ids), k=0, token_ids=ids, pieces=pieces, logprobs=packed(*ids))]


def test_without_logprobs_only_texts_that_are_not_empty_remain() -> None:
    reader = ChoiceReader(Generation(prompt="b", sampling=SAMPLING), PLAIN)
    log = [
        Entry(after=0, k=1, attempt=1),
        *entries(0, *EURO, pieces=("a", "", "", "€")),
        Entry(after=4, k=1, pieces=("é",)),
    ]
    assert list(reader.read(log)) == [Piece("a"), Piece("€"), Piece("é")]
    assert list(reader.prompt()) == []


def test_each_token_has_its_place_in_the_text() -> None:
    reader = ChoiceReader(Generation(prompt="b", sampling=SAMPLING), LOGPROBS)
    log = entries(0, *EURO, 1, pieces=("a", "", "", "€", "b"))
    first, second = log[0], log[0].cut(2)
    cut = replace(first, after=2, token_ids=first.token_ids[:2], pieces=first.pieces[:2], logprobs=packed(0, EURO[0]))
    whole = [Piece("a", [item(0, 0)]), Piece("", [item(2, 1)]), Piece("", [item(3, 1)]), Piece("€", [item(4, 1)])]
    whole.append(Piece("b", [item(1, 2)]))
    assert list(reader.read(log)) == whole
    # The log may be read in several parts.
    reader = ChoiceReader(Generation(prompt="b", sampling=SAMPLING), LOGPROBS)
    assert [*reader.read([cut]), *reader.read([second])] == whole


def test_an_echoed_text_has_bos_and_the_prompt_s_logprobs() -> None:
    options = ReadOptions(names=NAMES, echo=True, logprobs=True, first_id=BOS)
    reader = ChoiceReader(Generation(prompt="ab", sampling=SAMPLING), options)
    log = [Entry(after=0, k=1, prompt_logprobs=packed(0, 1)), *entries(0, pieces=("a",))]
    prompt = Piece("ab", [TokenItem(BOS, None, (), 0), item(0, 0), item(1, 1)])
    assert list(reader.read(log)) == [prompt, Piece("a", [item(0, 2)])]


def test_echoed_ids_are_decoded() -> None:
    options = ReadOptions(names=NAMES, echo=True, logprobs=True, first_id=EURO[0])
    reader = ChoiceReader(Generation(prompt_ids=(*EURO, 0), sampling=SAMPLING), options)
    log = [Entry(after=0, k=1, prompt_logprobs=packed(*EURO[1:], 0)), *entries(1, pieces=("b",))]
    [prompt, answer] = reader.read(log)
    assert prompt.text == "€a"
    assert [(one.token_id, one.offset) for one in prompt.tokens] == [(2, 0), (3, 0), (4, 0), (0, 1)]
    assert answer == Piece("b", [item(1, 2)])


def test_with_echo_the_stop_token_is_the_one_token_after_the_prompt() -> None:
    """lm-eval drops the last entry of the arrays, which is the generated one."""
    options = ReadOptions(names=NAMES, echo=True, logprobs=True, first_id=0)
    generation = Generation(prompt_ids=(0, 1), sampling=SAMPLING)
    log = [Entry(after=0, k=1, prompt_logprobs=packed(1)), Entry(after=0, k=2, stop_logprobs=packed(BOS))]
    pieces = [*ChoiceReader(generation, options).read(log)]
    assert [one.token_id for piece in pieces for one in piece.tokens] == [0, 1, BOS]
    assert "".join(piece.text for piece in pieces) == "ab"
    assert list(ChoiceReader(generation, LOGPROBS).read(log)) == []


def test_a_second_attempt_computes_the_prompt_again() -> None:
    options = ReadOptions(names=NAMES, echo=True, logprobs=True, first_id=0)
    reader = ChoiceReader(Generation(prompt_ids=(0, 1), sampling=SAMPLING), options)
    log = [
        Entry(after=0, k=1, prompt_logprobs=packed(1)),
        *entries(0, pieces=("a",)),
        Entry(after=1, k=1, attempt=2),
        Entry(after=1, k=2, prompt_logprobs=packed(1)),
        Entry(after=2, k=0, token_ids=(1,), pieces=("b",), logprobs=packed(1)),
    ]
    assert [piece.text for piece in reader.read(log)] == ["ab", "a", "b"]


def test_a_prompt_alone() -> None:
    options = ReadOptions(names=NAMES, echo=True, logprobs=True, prompt_only=True, first_id=0)
    reader = ChoiceReader(Generation(prompt_ids=(0, 1), sampling=SAMPLING), options)
    log = [Entry(after=0, k=1, prompt_logprobs=packed(1)), *entries(0, pieces=("a",))]
    assert list(reader.read(log)) == [Piece("ab", [TokenItem(0, None, (), 0), item(1, 1)])]
    assert list(reader.prompt()) == []


def test_a_log_without_text_still_has_the_prompt() -> None:
    reader = ChoiceReader(Generation(prompt="ab", sampling=SAMPLING), ReadOptions(names=NAMES, echo=True))
    assert list(reader.read([])) == []
    assert list(reader.prompt()) == [Piece("ab")]


def test_json_has_no_infinity() -> None:
    reader = ChoiceReader(Generation(prompt="a", sampling=SAMPLING), LOGPROBS)
    records = pack([record(0, -math.inf)], 1)
    [piece] = reader.read([Entry(after=1, k=0, token_ids=(0,), pieces=("a",), logprobs=records)])
    assert piece.tokens[0].logprob == LEAST_LOGPROB
