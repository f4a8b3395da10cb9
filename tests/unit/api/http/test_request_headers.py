"""The headers `Accept`, `Prefer`, `Cancel-After` and `Idempotency-Key`, as specified and as clients send them."""

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from api.http.problems import ApiError
from api.http.request_headers import (
    Preferences,
    parse_cancel_after,
    parse_idempotency_key,
    parse_prefer,
    prefers_events,
)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], Preferences()),
        (["wait=10"], Preferences(wait_s=10)),
        (["respond-async"], Preferences(respond_async=True)),
        (["respond-async, wait=10"], Preferences(wait_s=10, respond_async=True)),
        (["respond-async", "wait=10"], Preferences(wait_s=10, respond_async=True)),
        (["Respond-Async; foo=bar , WAIT = 10"], Preferences(wait_s=10, respond_async=True)),
        (['wait="10"'], Preferences(wait_s=10)),
        (['return="a, wait=3", wait=10;x="y;z"'], Preferences(wait_s=10)),
        (["wait=10, wait=20"], Preferences(wait_s=10)),
        (['respond-async=""'], Preferences(respond_async=True)),
        (["return=minimal, handling=lenient"], Preferences()),
        (["wait=0"], Preferences(wait_s=0)),
        (["wait=-1"], Preferences()),
        (["wait=1.5"], Preferences()),
        (["wait"], Preferences()),
        (["wait=٣"], Preferences()),
        ([",, ,wait=7,"], Preferences(wait_s=7)),
        (['"unfinished, wait=7'], Preferences()),
        (["a b c, wait=7"], Preferences(wait_s=7)),
    ],
)
def test_prefer_is_parsed(lines: list[str], expected: Preferences) -> None:
    assert parse_prefer(lines) == expected


def test_a_preferred_wait_is_limited() -> None:
    preferences = parse_prefer(["wait=" + "9" * 5000])
    assert preferences.granted_wait_s(default=None, longest=600.0) == 600.0


@pytest.mark.parametrize(
    ("lines", "wait_s"),
    [([], 120.0), (["wait=3"], 3.0), (["respond-async"], None), (["respond-async, wait=3"], 3.0), (["x"], 120.0)],
)
def test_the_granted_wait(lines: list[str], wait_s: float | None) -> None:
    assert parse_prefer(lines).granted_wait_s(default=120.0, longest=600.0) == wait_s


def test_preference_applied_names_what_was_applied() -> None:
    both = Preferences(wait_s=900, respond_async=True)
    assert both.applied(waited_s=600.0, answered_async=True) == "respond-async, wait=600"
    assert both.applied(waited_s=600.0, answered_async=False) == "wait=600"
    assert Preferences().applied(waited_s=120.0, answered_async=False) == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1m30s", 90), ("1h", 3600), (" 1H2M3.5S ", 3723.5), ("0.25", 0.25), ("604800", 604800)],
)
def test_cancel_after_is_parsed(text: str, seconds: float) -> None:
    assert parse_cancel_after(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "s", "1d", "1s1m", "1e3", "604801", "١", "nan", "inf", "1 m"])
def test_a_malformed_cancel_after_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as refusal:
        parse_cancel_after(text)
    assert refusal.value.to_problem("/")["errors"][0]["header"] == "cancel-after"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5"', "8e03978e-40d5"),
        ("8e03978e-40d5", "8e03978e-40d5"),
        (r'"with \"quotes\" and \\"', r'with "quotes" and \\'[:-1]),
        ('"key";version=1', "key"),
        ("  spaced  ", "spaced"),
    ],
)
def test_an_idempotency_key_is_parsed(value: str, key: str) -> None:
    assert parse_idempotency_key([value]) == key


@pytest.mark.parametrize("lines", [[""], ['""'], ['"open'], ["two words"], ["ä"], ["x" * 256], ["a", "b"], ['"a\\b"']])
def test_a_malformed_idempotency_key_is_refused(lines: list[str]) -> None:
    with pytest.raises(ApiError) as raised:
        parse_idempotency_key(lines)
    assert raised.value.http_status == 422
    assert raised.value.to_problem("/v1/jobs")["errors"][0]["header"] == "idempotency-key"


def test_without_the_header_there_is_no_idempotency_key() -> None:
    assert parse_idempotency_key([]) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], False),
        ([""], False),
        (["*/*"], False),
        (["text/*"], False),
        (["application/json"], False),
        (["text/event-stream"], True),
        (["TEXT/Event-Stream"], True),
        (["text/event-stream; charset=utf-8"], True),
        (["text/event-stream;q=0"], False),
        (["text/event-stream;q=0.000"], False),
        (["text/event-stream;q=0.001"], True),
        # The higher quality wins, in any order and on any line.
        (["application/json, text/event-stream;q=0.1"], False),
        (["text/event-stream;q=0.1, application/json"], False),
        (["text/event-stream;q=0.1", "application/json"], False),
        (["application/json;q=0.5, text/event-stream; q=0.9"], True),
        (["application/json;q=0, text/event-stream;q=0.1"], True),
        # A wildcard gives the quality of JSON only if no range that fits more closely is given.
        (["*/*, text/event-stream;q=0.9"], False),
        (["application/*, text/event-stream;q=0.9"], False),
        (["application/*;q=0.8, */*, text/event-stream;q=0.9"], True),
        (["application/json;q=0.1, application/*, */*, text/event-stream;q=0.2"], True),
        # At the same quality, a client that names the type gets events.
        (["text/event-stream, */*"], True),
        (["application/json, text/event-stream"], True),
        (["application/json;q=0.5, text/event-stream;q=0.5"], True),
        # The highest quality of a repeated range counts.
        (["text/event-stream;q=0.1, text/event-stream, application/json;q=0.5"], True),
        # Parameters may be quoted, and the quality may be anywhere among them.
        (['text/event-stream;a="x,application/json;q=0"; Q=0.2, application/json;q=0.3'], False),
        (['application/json;profile="text/event-stream"'], False),
        # A range with a malformed quality is ignored.
        (["text/event-stream;q=2"], False),
        (["text/event-stream;q="], False),
        (["text/event-stream;q=0.0001"], False),
        (["text/event-stream, application/json;q=high"], True),
        (["text/event-stream;q=٠"], False),
        ([", ;, text/event-stream ,"], True),
    ],
)
def test_accept_asks_for_events(lines: list[str], expected: bool) -> None:
    assert prefers_events(lines) is expected


@pytest.mark.parametrize("parse", [prefers_events, parse_prefer, parse_idempotency_key])
@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [
        ("wait=", " ", "("),
        ("wait", " ", "("),
        ("wait", "=", ""),
        ("", "a", "("),
        ("", "a,", ""),
        ("", "a;", ""),
        ("", ";q=", ""),
        ("text/event-stream;q", " ", "=x"),
        ("text/event-stream;q=", " ", "x"),
        ("text/event-stream;q=0.", "0", "x"),
        ('a="', "\\a", ""),
        ("", '"', ""),
        ('"a"', " ", "("),
        ('"', "\\\\", ""),
    ],
)
def test_a_long_header_takes_time_in_proportion_to_its_length(
    parse: Callable[[list[str]], object], before: str, repeated: str, after: str
) -> None:
    def processor_s(times: int) -> float:
        header = before + repeated * times + after
        began = time.process_time()
        with suppress(ApiError):
            parse([header])
        return time.process_time() - began

    # A header sixteen times as long would take 256 times as long in quadratic time.
    short_s = min(processor_s(2_000) for _ in range(5))
    assert min(processor_s(32_000) for _ in range(3)) < 64 * max(short_s, 0.0005)
