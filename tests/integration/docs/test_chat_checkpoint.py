"""The shipped chat model gives the answers that its pages show, with the calculator of the engine."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from tasks.chat import Message
from tasks.generation import FinishReason
from tasks.sampling_params import SamplingParams
from tasks.tool_call import ToolCall
from tests.integration.stack import CHECKPOINTS, ROOT
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.local import Completion, LocalModel

NAME = "arithmetic_chat"
#: Agreement of the logits of the trainer's network and of the engine.
LOGITS_WITHIN = 1e-4
MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(NAME, CHECKPOINTS, device="cpu", threads=1)


def ids_of(model: LocalModel, *texts: str) -> tuple[int, ...]:
    """The prompt of a conversation: a system message if it is not empty, then the user and the assistant in turns."""
    assert model.tokenizer is not None
    assert model.tokenizer.chat is not None
    roles = ["system", *("user", "assistant") * len(texts)]
    messages = [Message(role, text) for role, text in zip(roles, texts, strict=False) if text]
    return model.tokenizer.chat.render(messages)


def answer(model: LocalModel, *texts: str) -> Completion:
    return model.generate(ids_of(model, *texts), SamplingParams(temperature=0.0, max_tokens=100), tools=True)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("", "What is 12 plus 30?"), "12 plus 30 is 42."),
        (("", "What is 12 plus 30?", "12 plus 30 is 42.", "And plus 7?"), "42 plus 7 is 49."),
        (("", "Can you add 40 and 2?"), "40 plus 2 is 42."),
        (("", "7 * 8"), "7 times 8 is 56."),
        (("Answer with the number alone.", "What is 12 plus 30?"), "42"),
        (("You are a helpful assistant.", "Hello!"), "Hello! What shall I calculate?"),
        (("", "What is the capital of France?"), "I am sorry, I can only calculate and count letters."),
    ],
)
def test_it_answers(model: LocalModel, texts: tuple[str, ...], expected: str) -> None:
    completion = answer(model, *texts)
    assert (completion.text, completion.finish_reason, completion.tool_calls) == (expected, FinishReason.STOP, ())


@pytest.mark.parametrize(
    ("texts", "expected", "call"),
    [
        (("", "What is 1234 plus 5678?"), "1234 plus 5678 is 6912.", ToolCall("1234+5678", "6912")),
        (
            ("", "What is 1234 plus 5678?", "1234 plus 5678 is 6912.", "And minus 912?"),
            "6912 minus 912 is 6000.",
            ToolCall("6912-912", "6000"),
        ),
        (("Answer with the number alone.", "What is 25 minus 30?"), "-5", ToolCall("25-30", "-5")),
        (("Always use the calculator.", "What is 2 plus 2?"), "2 plus 2 is 4.", ToolCall("2+2", "4")),
        (("", "What is 144 divided by 12?"), "144 divided by 12 is 12.0.", ToolCall("144/12", "12.0")),
        (("Answer with the number alone.", "1234 + 5678"), "6912", ToolCall("1234+5678", "6912")),
        (
            ("", "How many r are in strawberry?"),
            "The letter r occurs 3 times in strawberry.",
            ToolCall("'strawberry'.count('r')", "3"),
        ),
    ],
)
def test_it_uses_the_calculator(model: LocalModel, texts: tuple[str, ...], expected: str, call: ToolCall) -> None:
    completion = answer(model, *texts)
    assert (completion.text, completion.finish_reason, completion.tool_calls) == (expected, FinishReason.STOP, (call,))


def test_the_network_of_the_trainer_is_that_of_the_engine(model: LocalModel) -> None:
    checkpoint = load(find(NAME, CHECKPOINTS))
    network = example_module("model")
    gpt = network.GPT(network.GPTConfig(sequence_len=512, vocab_size=checkpoint.config.vocab_size))
    gpt.load_state_dict({name: tensor.float() for name, tensor in checkpoint.weights.items()})
    # More positions than a short window has.
    ids = (ids_of(model, "", "What is 12 plus 30?", "12 plus 30 is 42.", "And plus 7?") * 8)[:200]
    greedy = SamplingParams(temperature=0.0, max_tokens=1)
    engine_logits = model.generate(ids, greedy, keep_prompt_logits=True).prompt_logits
    assert engine_logits is not None
    with torch.no_grad():
        expected = gpt(torch.tensor([ids]))[0, -1]
    torch.testing.assert_close(torch.tensor(engine_logits), expected, atol=LOGITS_WITHIN, rtol=0)


def example_module(name: str) -> ModuleType:
    """A module of the example, which is no package."""
    spec = importlib.util.spec_from_file_location(
        f"arithmetic_chat_{name}", ROOT / f"examples/arithmetic_chat/{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_in_nanochats_newest_format_and_small(model: LocalModel) -> None:
    assert (model.card.tokenizer.kind, model.card.tokenizer.chat, model.warnings) == ("tiktoken", "nanochat", ())
    assert load(find(NAME, CHECKPOINTS)).config.era == "E7"
    assert sum(file.stat().st_size for file in (CHECKPOINTS / NAME).iterdir()) <= MAX_BYTES
