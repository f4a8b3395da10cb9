"""The loop of a conversation, with a backend that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest

from celeriac.cli.chat import conversation as module
from celeriac.cli.chat.backend import Answer, ChatError
from celeriac.cli.chat.conversation import Conversation
from celeriac.cli.chat.history import History
from celeriac.cli.chat.screen import Screen
from tasks.chat import Message
from tasks.tool_call import ToolCall

#: What the backend does for one message: it prints pieces, and returns the answer or raises.
Act = Callable[[Screen], Answer]


def says(*pieces: str, finish_reason: str = "stop", full: bool = False, calls: Sequence[ToolCall] = ()) -> Act:
    """Answer with these pieces."""

    def act(screen: Screen) -> Answer:
        for piece in pieces:
            screen.print_text(piece)
        return Answer(text="".join(pieces), finish_reason=finish_reason, context_full=full, tool_calls=tuple(calls))

    return act


def fails(error: BaseException, *pieces: str) -> Act:
    """Print these pieces, and raise."""

    def act(screen: Screen) -> Answer:
        for piece in pieces:
            screen.print_text(piece)
        raise error

    return act


class Backend:
    """Acts in turn, and records the conversations that it was given."""

    greeting = "Chat with nothing."

    def __init__(self, *acts: Act) -> None:
        self._acts = iter(acts)
        self.asked: list[list[tuple[str, str]]] = []

    def answer(self, messages: Sequence[Message], screen: Screen) -> Answer:
        self.asked.append([(message.role, message.content) for message in messages])
        return next(self._acts)(screen)


class Talk:
    """Runs conversations whose lines come from a list; `typed`: as if a person typed them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, backend: Backend, *lines: str, system: str | None = None, typed: bool = True) -> None:
        rest = iter(lines)
        self._monkeypatch.setattr(module, "is_terminal", lambda _: typed)
        self._monkeypatch.setattr(module, "next_line", lambda _: next(rest, None))
        try:
            Conversation(backend, History(system)).run()
        finally:
            self.out, self.err = self._capsys.readouterr()
        assert next(rest, None) is None, "the conversation ended early"


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    return Talk(monkeypatch, capsys)


def test_each_message_comes_with_all_before_it(talk: Talk) -> None:
    backend = Backend(says("A", "B"), says("C\n"))
    talk(backend, "one", "", "   ", "two", system="Be brief.")
    system = ("system", "Be brief.")
    assert backend.asked == [
        [system, ("user", "one")],
        [system, ("user", "one"), ("assistant", "AB"), ("user", "two")],
    ]
    assert talk.out == "AB\nC\n"


def test_lines_of_a_pipe_are_read_without_decoration(talk: Talk) -> None:
    talk(Backend(says("A"), says()), "one", "two", typed=False)
    assert (talk.out, talk.err) == ("A\n\n", "")


def test_a_person_is_greeted_on_stderr(talk: Talk) -> None:
    talk(Backend())
    assert (talk.out, talk.err) == ("", "Chat with nothing. /help shows the commands; Ctrl-D leaves.\n")


def test_a_stopped_answer_stays_as_far_as_it_was_printed(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    backend = Backend(fails(KeyboardInterrupt(), "half", " of"), says("B"))
    talk(backend, "one", "two", f"/save {file}", system="S")
    assert backend.asked[1][2:] == [("assistant", "half of"), ("user", "two")]
    assert talk.out == "half of\nB\n"
    assert "(stopped)\n" in talk.err
    assert json.loads(file.read_text()) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "half of", "finish_reason": "cancelled"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "B"},
    ]


def test_a_message_whose_answer_was_stopped_before_its_first_text_is_forgotten(talk: Talk) -> None:
    backend = Backend(fails(KeyboardInterrupt()), says("B"))
    talk(backend, "one", "two")
    assert backend.asked[1] == [("user", "two")]
    assert (talk.out, "your message is forgotten" in talk.err) == ("B\n", True)


def test_ctrl_c_ends_a_conversation_whose_lines_come_from_a_pipe(talk: Talk) -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(Backend(fails(KeyboardInterrupt(), "half")), "one", typed=False)


@pytest.mark.parametrize("typed", [True, False])
def test_an_error_forgets_the_message_and_the_talk_goes_on(talk: Talk, typed: bool) -> None:
    backend = Backend(says("A"), fails(ChatError("The server is away.\x1b[2J"), "half"), says("C"))
    if typed:
        talk(backend, "one", "two", "three")
    else:
        with pytest.raises(click.exceptions.Exit) as caught:
            talk(backend, "one", "two", "three", typed=False)
        assert caught.value.exit_code == 1
    assert backend.asked[2] == [("user", "one"), ("assistant", "A"), ("user", "three")]
    assert talk.out == "A\nhalf\nC\n"
    assert talk.err.endswith("Error: The server is away.\\x1b[2J\n")


def test_an_error_outside_the_answer_ends_the_talk(talk: Talk) -> None:
    with pytest.raises(BrokenPipeError):
        talk(Backend(fails(BrokenPipeError())), "one")


def test_clear_and_system_change_what_is_sent(talk: Talk) -> None:
    backend = Backend(*[says("A")] * 4)
    talk(backend, "one", "/clear", "two", "/system  You are a pirate. ", "three", "/system", "four", system="S")
    pirate = ("system", "You are a pirate.")
    said = [("user", "two"), ("assistant", "A"), ("user", "three")]
    assert backend.asked[1:] == [
        [("system", "S"), ("user", "two")],
        [pirate, *said],
        [*said, ("assistant", "A"), ("user", "four")],
    ]


def test_an_answer_without_text_is_an_answer(talk: Talk) -> None:
    backend = Backend(says(), says("B"))
    talk(backend, "one", "two")
    assert backend.asked[1] == [("user", "one"), ("assistant", ""), ("user", "two")]
    assert talk.out == "\nB\n"


@pytest.mark.parametrize("word", ["/exit", "/quit", "/exit  "])
def test_exit_leaves(talk: Talk, word: str) -> None:
    backend = Backend(says("A"))
    talk(backend, "one", word)
    assert len(backend.asked) == 1


@pytest.mark.parametrize("line", ["/nothing", "/exit now", "/save", "/clear all", "/ clear", "/\x1b[2J"])
def test_what_is_no_command_is_not_sent_and_does_nothing(talk: Talk, line: str) -> None:
    backend = Backend(says("A"), says("B"))
    talk(backend, "one", line, "two")
    assert len(backend.asked[1]) == 3
    assert "/help shows the commands.\n" in talk.err
    assert "\x1b" not in talk.err


def test_two_slashes_begin_a_message_with_one(talk: Talk) -> None:
    backend = Backend(says("A"))
    talk(backend, "//exit now")
    assert backend.asked == [[("user", "/exit now")]]


def test_help_names_every_command(talk: Talk) -> None:
    talk(Backend(), "/help")
    assert all(f"\n{name} " in f"\n{talk.err}" for name in ("/clear", "/system", "/save", "/help", "/exit"))
    assert talk.out == ""


def test_save_never_overwrites(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("mine")
    talk(Backend(says("A")), "one", f"/save {file}", f"/save {tmp_path}/none/x.json", f"/save {tmp_path}")
    assert file.read_text() == "mine"
    refused, missing, folder = [line for line in talk.err.splitlines() if line.startswith("Error: ")]
    assert refused == f"Error: {file} exists, and is not overwritten. Choose another name."
    assert missing.endswith("cannot be written: No such file or directory.")
    assert folder.startswith(f"Error: {tmp_path} exists")


def test_saved_answers_that_were_cut_are_marked_after_clear_too(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    backend = Backend(says("A", finish_reason="length"), says("é"), says("C", finish_reason="length"))
    talk(backend, "one", "/clear", "two", "three", f"/save {file}")
    assert [message.get("finish_reason") for message in json.loads(file.read_text())] == [None, None, None, "length"]
    assert '"é"' in file.read_text("utf-8")


def test_an_answer_that_is_cut_says_why(talk: Talk) -> None:
    backend = Backend(says("A", finish_reason="length"), says("B", finish_reason="length", full=True))
    talk(backend, "one", "two")
    assert talk.err.splitlines()[1:] == [
        "(cut: --max-tokens sets how long an answer may be)",
        "(cut: the context is full; /clear begins a new conversation)",
    ]
    assert backend.asked[1][1] == ("assistant", "A")


def test_uses_of_the_calculator_are_shown_beside_the_text(talk: Talk) -> None:
    calls = [ToolCall("12*12", "144"), ToolCall("1\n\x1b+", "")]
    talk(Backend(says("It is 144.", calls=calls)), "one", typed=False)
    assert (talk.out, talk.err) == ("It is 144.\n", "12*12 = 144\n1\\n\\x1b+ has no result\n")
