"""The `Prefer` header, as RFC 7240 spells it and as clients send it."""

import pytest

from api.http.request_headers import Preferences, parse_prefer


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
def test_parses(lines: list[str], expected: Preferences) -> None:
    assert parse_prefer(lines) == expected


def test_a_wait_of_any_length_is_capped() -> None:
    asked = parse_prefer(["wait=" + "9" * 5000])
    assert asked.patience_s(default=None, longest=600.0) == 600.0


@pytest.mark.parametrize(
    ("lines", "patience_s"),
    [([], 120.0), (["wait=3"], 3.0), (["respond-async"], None), (["respond-async, wait=3"], 3.0), (["x"], 120.0)],
)
def test_how_long_to_wait(lines: list[str], patience_s: float | None) -> None:
    assert parse_prefer(lines).patience_s(default=120.0, longest=600.0) == patience_s


def test_tells_what_was_applied() -> None:
    both = Preferences(wait_s=900, respond_async=True)
    assert both.applied(waited_s=600.0, answered_async=True) == "respond-async, wait=600"
    assert both.applied(waited_s=600.0, answered_async=False) == "wait=600"
    assert Preferences().applied(waited_s=120.0, answered_async=False) == ""
