"""Foreign text on a terminal: what hostile servers, files and models can make the command line print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from celeriac.cli import job_printer, main, output
from celeriac.cli.printable import DIRECTIONS, LINES, printable
from tests.helpers.checkpoint_files import state_dict, write
from tests.helpers.job_objects import QUEUED, SUCCEEDED, job_object
from tests.helpers.stream_bytes import done, event, queue
from tests.unit.celeriac.cli.test_cli import Shell, ok, stream

#: Sets the title, moves the cursor, asks for an answer, in 7 and 8 bits; turns the direction; ends the line.
EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b6n\x9d0;x\x9c\x00\x08\r\x7f\u202eb\u2066\u2028"
UNSAFE = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *DIRECTIONS, "\u2028", "\u2029"}


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """All output of the command line goes to a terminal."""
    for module in (output, job_printer):
        monkeypatch.setattr(module, "is_terminal", lambda _: True)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(monkeypatch)


def assert_safe(text: str, *, allowed: str = LINES) -> None:
    assert not (found := {*text} & (UNSAFE - {*allowed})), (found, text)


@given(st.text(st.characters(exclude_categories=[])))
def test_no_unsafe_character_is_left_and_others_stay(text: str) -> None:
    shown = printable(text, keep="\n")
    assert_safe(shown, allowed="\n")
    shown.encode()
    assert [char for char in shown if char == "\n"] == [char for char in text if char == "\n"]
    if text.isprintable():
        assert shown == text


def test_ordinary_text_of_any_language_stays() -> None:
    text = "déjà vu, 数学, עברית, 👩‍👩‍👧, ½"
    assert printable(text) == text


def test_a_text_on_a_terminal_has_no_control_characters(shell: Shell) -> None:
    text = f"{EVIL}\tx\n"
    ended = job_object(SUCCEEDED, completion=text)
    for command in (("generate", "1+1="), ("watch", "job_1")):
        running = stream(event("token", {"offset": 0, "count": 1, "text": text}, "1-0"), done(ended))
        result = shell(*command, responses=[ok(job_object(QUEUED), 202), running])
        assert result.exit_code == 0, result.output
        assert_safe(result.stdout, allowed=f"{LINES}{DIRECTIONS}")
        assert "a\\x1b]0;owned\\x07" in result.stdout
        assert "\tx\n" in result.stdout


def test_a_text_in_a_pipe_stays_as_it_is(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (output, job_printer):
        monkeypatch.setattr(module, "is_terminal", lambda _: False)
    result = shell("generate", "1+1=", responses=[ok(job_object(SUCCEEDED, completion=EVIL))])
    assert result.stdout_bytes.decode() == f"1+1={EVIL}\n"


def hostile_job(**changes: Any) -> dict[str, Any]:
    """A job of a hostile server: every text in it is evil."""
    job = job_object(SUCCEEDED)
    evil = {key: EVIL for key, value in job.items() if isinstance(value, str) and not key.endswith("_at")}
    return job | evil | {"warnings": [EVIL], "metadata": {EVIL: EVIL}} | changes


@pytest.mark.parametrize(
    "command",
    [("submit", "1"), ("jobs",), ("cancel", "x"), ("delete", "x"), ("retry", "x"), ("watch", "x"), ("generate", "1")],
)
def test_no_answer_of_a_server_controls_the_terminal(shell: Shell, command: tuple[str, ...]) -> None:
    page = {"data": [hostile_job()], "next_cursor": None}
    refused = {"code": EVIL, "title": EVIL, "detail": f"{EVIL} refused", "status": 422, "type": EVIL}
    events = stream(queue(3), event("status", {"status": "running", "attempt": 1, "worker": EVIL}), done(hostile_job()))
    for responses in (
        [ok(page if command[0] == "jobs" else hostile_job()), events],
        [ok(hostile_job(status="queued")), events],
        [ok(refused, 422)],
        [httpx.Response(500, text=EVIL)],
        [httpx.Response(200, text=EVIL)],
        [httpx.ConnectError(EVIL)] * 20,
    ):
        result = shell(*command, responses=[*responses, *[httpx.Response(500, text=EVIL)] * 20])
        assert isinstance(result.exception, SystemExit | None), result.exception
        # click moves the cursor to the beginning of the line for the queue's position.
        assert_safe(result.stdout)
        assert_safe(result.stderr, allowed=f"{LINES}\r")


def test_no_name_in_a_file_controls_the_terminal(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {f"{EVIL}": state_dict()["lm_head.weight"]} | state_dict())
    meta = folder / "meta_000007.json"
    for change in ({}, {"window_pattern": EVIL}, {"n_layer": EVIL}, {EVIL: 1}):
        content = json.loads(meta.read_text())
        content["model_config"] |= change
        meta.write_text(json.dumps(content))
        result = CliRunner().invoke(main, ["inspect", str(folder)])
        assert result.exit_code == 1
        assert_safe(result.output)
    (folder / "meta_000007.json").unlink()
    weird = tmp_path / f"{EVIL.replace(chr(0), '')}"
    weird.mkdir()
    result = CliRunner().invoke(main, ["inspect", str(weird)])
    assert result.exit_code == 1
    assert_safe(result.output)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.pkl", "tokenizer.json"])
def test_no_tokenizer_controls_the_terminal(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "run")
    content = {
        "tokenizer_config.json": json.dumps({"vocab_chars": [EVIL]}).encode(),
        "tokenizer.pkl": b"c" + EVIL.encode() + b"\nx\n.",
        "tokenizer.json": json.dumps({"version": EVIL, EVIL: 1}).encode(),
    }
    (folder / name).write_bytes(content[name])
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert_safe(result.output)
    assert "cannot be served" in result.output


def test_json_is_safe_and_keeps_every_character(shell: Shell) -> None:
    result = shell("submit", "1", "--json", responses=[ok(hostile_job(), 202)])
    assert json.loads(result.stdout)["model"] == EVIL
    assert_safe(result.stdout)
