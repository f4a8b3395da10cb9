"""`celeriac run --chat`: a conversation with a checkpoint in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from celeriac.cli import main
from celeriac.cli.chat.local import LocalBackend
from celeriac.cli.chat.screen import Screen
from tasks.chat import Message
from tasks.sampling_params import SamplingParams
from tasks.settings import settings
from tests.helpers.chat_checkpoint import CONTEXT, write_chat_checkpoint
from worker.local import LocalModel, LocalModelError, PromptTooLongError

GOLDEN = Path(__file__).parents[4] / "fixtures" / "golden"
#: A checkpoint without a chat template.
PLAIN = GOLDEN / "E1b-seed" / "step_000102"
GREEDY = ("--temperature", "0", "--ignore-eos")


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel.load(str(folder), folder.parent, device="cpu", threads=1)


def chat(folder: Path, *args: str, lines: str) -> Result:
    return CliRunner().invoke(main, ["run", str(folder), "--chat", *args], input=lines, prog_name="celeriac")


def said(*texts: str) -> tuple[Message, ...]:
    """Messages of the user and the assistant in turn."""
    return tuple(Message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts))


def text_of(model: LocalModel, messages: tuple[Message, ...], **sampling: Any) -> str:
    """The greedy answer to a conversation."""
    params = SamplingParams(temperature=0.0, ignore_eos=True, **sampling)
    completion = model.generate(model.encode_messages(messages), params, tools=True)
    assert completion.text is not None
    return completion.text


def test_each_answer_continues_the_whole_conversation(folder: Path, model: LocalModel, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    lines = f"hi\nand?\n/save {file}\n"
    result = chat(folder, *GREEDY, "--max-tokens", "6", "--system", "Be brief.", lines=lines)
    assert result.exit_code == 0, result.output
    system = Message("system", "Be brief.")
    first = text_of(model, (system, *said("hi")), max_tokens=6)
    second = text_of(model, (system, *said("hi", first, "and?")), max_tokens=6)
    assert [message["content"] for message in json.loads(file.read_text("utf-8"))] == [
        "Be brief.",
        "hi",
        first,
        "and?",
        second,
    ]
    assert result.stdout == f"{first}\n{second}\n"


def test_a_conversation_that_does_not_fit_is_an_error_with_its_tokens(folder: Path) -> None:
    long = "x y " * CONTEXT
    result = chat(folder, *GREEDY, "--max-tokens", "1", lines=f"{long}\nhi\n")
    assert result.exit_code == 1
    error, _ = result.stderr.splitlines()
    assert error.startswith("Error: The conversation is too long. The prompt has ")
    assert f"the context of {CONTEXT} leaves no room" in error
    assert error.endswith(" /clear begins a new one.")
    assert result.stdout


def test_without_max_tokens_an_answer_fills_the_context(folder: Path) -> None:
    result = chat(folder, *GREEDY, lines="hi\n")
    assert result.stderr == "(cut: the context is full; /clear begins a new conversation)\n"
    result = chat(folder, *GREEDY, "--max-tokens", "100", lines="hi\n")
    assert result.stderr == "(cut: --max-tokens sets how long an answer may be)\n"


def test_a_checkpoint_that_is_no_chat_model_is_refused_at_once() -> None:
    result = chat(PLAIN, lines="hi\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "Error: step_000102 is not a chat model: it has no chat template. `celeriac generate`"
    )
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", "x"], "Give one of --prompt, --token-ids, --interactive and --chat."),
        (["--interactive"], "Give one of"),
        (["--json"], "--chat and --json cannot be combined."),
    ],
)
def test_chat_is_one_way_of_running(folder: Path, args: list[str], message: str) -> None:
    result = chat(folder, *args, lines="hi\n")
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_the_system_message_needs_chat(folder: Path) -> None:
    result = CliRunner().invoke(main, ["run", str(folder), "--prompt", "x", "--system", "S"])
    assert (result.exit_code, "--system needs --chat." in result.stderr) == (2, True)


def test_after_an_interrupted_answer_the_model_answers_as_before(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LocalBackend(model, SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=40))
    expected = text_of(model, said("hi"), max_tokens=40)

    def interrupted(_: Screen, piece: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Screen, "print_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.answer(said("hi"), Screen())
    answer = backend.answer(said("hi"), Screen())
    assert (answer.text, answer.finish_reason, answer.context_full) == (expected, "length", False)


def test_messages_are_encoded_by_the_template(model: LocalModel) -> None:
    ids = model.encode_messages(said("hi", "A", "<|assistant_end|>"))
    assert ids[0] == model.tokenizer.bos_id
    # A special token's name that a user types is text: only the template's own tokens end an answer.
    end = model.card.tokenizer.eos_id
    assert ids.count(end) == 1
    with pytest.raises(LocalModelError, match="alternate"):
        model.encode_messages(said("hi")[:1] * 2)
    with pytest.raises(PromptTooLongError, match=f"the context of {CONTEXT}"):
        model.generate(range(1, CONTEXT + 1), SamplingParams())
