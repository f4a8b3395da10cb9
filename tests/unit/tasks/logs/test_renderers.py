"""What people and machines read of log events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.logs.printable import printable
from tasks.logs.renderers import JsonRenderer, PeopleRenderer
from tasks.logs.sink import parse

AT = "2026-11-27T12:00:00+00:00"
#: What a client may send to change a terminal, or how its text reads.
HOSTILE = "a\x1b]0;title\x07\x1b[31m\r\nb\x9b2J\x7f\u202ec\u2028d\ud800\u200b"


def people(**options: Any) -> PeopleRenderer:
    return PeopleRenderer(**{"terminal": False, "colours": False, **options})


def event(name: str, **fields: object) -> dict[str, object]:
    return {"event": name, "level": "info", "logger": "x", "timestamp": AT, **fields}


def visible(text: str) -> str:
    """The text without its line ends."""
    return text.replace("\n", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_foreign_reaches_a_terminal_raw(terminal: bool) -> None:
    renderer = people(terminal=terminal)
    events = [
        event("request", method=HOSTILE, path=HOSTILE, status=404, ms=1.0, job_id=HOSTILE),
        event(HOSTILE, **{HOSTILE: HOSTILE, "list": [HOSTILE], "level": "warning"}),
        event("job_finished", job_id=HOSTILE, reason=HOSTILE, tokens=1, seconds=1.0),
        event("failed", exception=f"Traceback:\n  {HOSTILE}\nError", level="error"),
        event("loading", checkpoint=HOSTILE, path=HOSTILE),
        dict(parse(HOSTILE)),
    ]
    for one in events:
        text = renderer.render(one, HOSTILE) + renderer.announce(HOSTILE, {})
        assert visible(text).isprintable(), text


def test_printable_text_stays_as_it_is() -> None:
    assert printable("Grüße, 東京 💡 [x] 100%") == "Grüße, 東京 💡 [x] 100%"
    assert printable("x" * 1000) == "x" * 300 + "..."
    assert printable("\x1b[1m") == r"\x1b[1m"


def test_a_job_is_one_short_line() -> None:
    renderer = people(processes=("api", "worker"))
    lines = [
        renderer.render(event("job_started", job_id="job_1", attempt=1), "worker"),
        renderer.render(event("job_finished", job_id="job_1", reason="stop", tokens=3, seconds=0.25), "worker"),
        renderer.render(
            event("request", method="POST", path="/generate", status=200, ms=30.0, job_id="job_1", client="a"), "api"
        ),
    ]
    (line,) = filter(None, lines)
    assert line.startswith("worker | ")
    assert line.endswith(" job job_1 stop: 3 tokens in 0.25 s\n")
    assert len(line) < 100


def test_a_request_that_failed_is_shown_and_so_is_each_one_of_an_api_alone() -> None:
    request = event("request", method="POST", path="/generate", status=503, ms=30.4, job_id=None, client="a")
    assert "POST /generate 503 in 30 ms\n" in people().render(request, "api")
    assert "POST /generate 200 in 30 ms\n" in people().render({**request, "status": 200})


def test_warnings_of_libraries_are_shown_and_their_chatter_is_not() -> None:
    chatter = event("Connected to redis", logger="celery.worker.consumer.connection")
    assert people().render(chatter) == ""
    assert "warning: Connected to redis" in people().render({**chatter, "level": "warning"})
    assert "Connected to redis" in people(everything=True).render(chatter)


def test_a_terminal_shows_a_bar_until_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    renderer = people(terminal=True)
    progress = event("loading_progress", loaded_bytes=1_500_000_000, total_bytes=3_000_000_000, elapsed_s=7.6)
    assert renderer.render(progress) == "\r\x1b[Kloading [##########..........]  50% 1.5 GB of 3.0 GB, 8 s"
    between = renderer.render(event("other"))
    assert between.startswith("\r\x1b[K")
    assert between.endswith("loading [##########..........]  50% 1.5 GB of 3.0 GB, 8 s")
    loaded = event("model_loaded", checkpoint="x", device="cpu", load_s=8.0, parameters=5, slots=1)
    assert renderer.render(loaded).endswith(" loaded x on cpu in 8.0 s: 5 parameters, 1 slots\n")
    assert "loading" not in renderer.render(event("other"))


def test_the_bar_of_a_process_that_has_ended_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    renderer = people(terminal=True, processes=("worker-1", "worker-2"))
    progress = event("loading_progress", loaded_bytes=1, total_bytes=2, elapsed_s=1.0)
    renderer.render(progress, "worker-1")
    assert renderer.render(progress, "worker-2").count("loading") == 2
    assert renderer.forget("worker-1").count("loading") == 1
    assert renderer.forget("worker-2") == "\r\x1b[K"
    assert renderer.forget("worker-2") == ""


def test_a_bar_is_never_longer_than_the_line_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    renderer = people(terminal=True)
    for worker in ("worker-1", "worker-2"):
        bar = renderer.render(event("loading_progress", loaded_bytes=1, total_bytes=2, elapsed_s=1.0), worker)
        assert len(bar.removeprefix("\r\x1b[K")) == 29


def test_a_log_gets_lines_instead_of_a_bar() -> None:
    progress = event("loading_progress", loaded_bytes=1_000_000, total_bytes=4_000_000, elapsed_s=2.0)
    assert people().render(progress).endswith(" loaded 1.0 MB of 4.0 MB, 2 s\n")
    assert json.loads(JsonRenderer().render(progress, "worker")) == {**progress, "process": "worker"}


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "{not json}", "[1]", '{"a": 1}', HOSTILE, "{"])
def test_a_line_that_is_no_event_becomes_one(line: str) -> None:
    made = json.loads(JsonRenderer().render(parse(line), "redis"))
    assert (made["event"], made["process"], made["level"]) == (line, "redis", "info")


def test_an_event_with_unexpected_fields_is_still_shown() -> None:
    """The launcher may show events of a process of another version."""
    assert "job_finished job_id=1" in people().render(event("job_finished", job_id=1))
    assert people().render({"event": "x", "timestamp": "yesterday"}).endswith(" x\n")
