"""Tokenizers beside transformers, with random texts, hostile ids and conversations."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from celeriac.cli import main
from tasks.chat import Message
from tests.conformance.client_environment import SCRIPTS, ClientEnvironment
from tests.helpers.huggingface_folders import GOLDEN_HF
from tests.helpers.smollm2 import smollm2_gguf
from worker.checkpoints.chat.template_process import TemplateProcess
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer
from worker.checkpoints.tokenizers.huggingface_config import HuggingFaceConfig
from worker.jobs.prompt import encode_prompt

pytestmark = pytest.mark.slow

SHAPES = Path(__file__).parents[1] / "fixtures" / "tokenizers"
FOLDERS = sorted(path.parent for root in (SHAPES, GOLDEN_HF) for path in root.glob("*/tokenizer.json"))
#: Letters of many scripts, spaces of all kinds, marks that join characters, and what tokenizers treat in their own way.
LETTERS = (
    "aAzZ09 \t\n\r\u00a0\u2003\u3000\u200b\u200d\ufeff\u2581.,'’\"<>|[]_éßñÅİıǅﬁ½²٣भ\u093fक\u094dไทย中文東京한글あア"
    "🙂👩👍🏽🇫🇷\u0301\ufe0f\0\x7f"
)
WORDS = ["the", " of", "I'll", "don't", "123", "   ", "\r\n\r\n", "<|im_start", "</s", "<0x0A>", "[INST", "👩‍👩‍👧‍👦"]
COUNT = 300


def random_text(rng: random.Random) -> str:
    kinds = [lambda: rng.choice(LETTERS), lambda: rng.choice(WORDS), lambda: chr(rng.choice([*range(0xD800), 0x1F600]))]
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(30)))


def random_ids(rng: random.Random, size: int, single: list[int]) -> list[int]:
    """Any ids, and often those of single bytes: of whole characters, cut ones, and none."""
    parts: list[int] = []
    while len(parts) < rng.randrange(1, 40):
        if rng.random() < 0.5:
            parts.append(rng.randrange(size))
        else:
            raw = rng.choice(["😀", "é", "▁", "東", "\n", " "]).encode() if rng.random() < 0.7 else rng.randbytes(3)
            parts += [single[byte] for byte in raw[rng.randrange(2) : rng.randrange(1, 5)]]
    return parts


def random_chat(rng: random.Random, template: str) -> list[dict[str, str]]:
    systems = 0 if "raise_exception" in template else rng.randrange(2)
    roles = ["system"] * systems + ["user", "assistant"] * rng.randrange(3) + ["user"]
    return [{"role": role, "content": random_text(rng).replace(">", "").replace("]", "")} for role in roles]


def loaded(folder: Path) -> HuggingFaceTokenizer:
    file = folder / "tokenizer.json"
    return HuggingFaceTokenizer.from_json(file.read_bytes(), 1 << 18, HuggingFaceConfig.beside(file, frozenset()))


def single_bytes(words: HuggingFaceTokenizer) -> list[int]:
    """The token of each byte."""
    by_bytes: dict[bytes, int] = {}
    for token_id in range(words.card().text_ids + len(words.special_ids)):
        raw = words.token_bytes(token_id)
        if raw is not None and len(raw) == 1:
            # In a vocabulary with byte fallback, some bytes have a token of their own as a letter, too.
            by_bytes.setdefault(raw, token_id)
    # A byte without a token is one that no text has.
    return [by_bytes.get(bytes([byte]), 0) for byte in range(256)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_texts_answers_and_conversations_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    check(folder, tmp_path)


def test_so_are_those_of_smollm2(tmp_path: Path) -> None:
    folder = tmp_path / "smollm2"
    result = CliRunner().invoke(main, ["convert", str(smollm2_gguf()), str(folder)])
    assert result.exit_code == 0, result.output
    check(folder, tmp_path)


def check(folder: Path, tmp_path: Path) -> None:
    """Compare the tokenizer of a folder with transformers."""
    rng = random.Random(folder.name)
    words = loaded(folder)
    size, single = max(words.special_ids.values()) + 300, single_bytes(words)
    # There, a name of a special token in a text is that token.
    texts = [
        one for one in (random_text(rng) for _ in range(COUNT)) if not any(map(one.__contains__, words.special_ids))
    ]
    # Many texts end with bytes, which bytes of the answer may make invalid: then there is nothing to compare.
    prompts = [encode_prompt(words, rng.choice(texts) + rng.choice(["", "a", "."]))[0] for _ in range(COUNT)]
    answers = [(prompt, random_ids(rng, size, single)) for prompt in prompts]
    template = "" if words.chat is None else words.chat.source
    chats = [random_chat(rng, template) for _ in range(COUNT // 10)] if template else []
    asked = {"folder": str(folder), "texts": texts, "answers": answers, "chats": chats}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    environment = ClientEnvironment("clients", tmp_path)
    output = environment.run("python", str(SCRIPTS / "tokenizer_texts.py"), str(tmp_path / "asked.json"))
    found: dict[str, Any] = json.loads(output.splitlines()[-1])

    for text, (ids, plain) in zip(texts, found["texts"], strict=True):
        # EOS after a text is left out.
        assert encode_prompt(words, text)[0] == tuple(ids)[: words.prepend_bos + len(plain)], repr(text)
        assert words.encode(text).ids == tuple(plain), repr(text)
    for (prompt, ids), expected in zip(answers, found["answers"], strict=True):
        decoder = words.decoder(prompt)
        pieces = [*map(decoder.push, ids), decoder.finish()]
        assert expected is None or "".join(pieces) == expected, (prompt, ids)
    assert sum(one is None for one in found["answers"]) < COUNT / 2
    for messages, (text, ids) in zip(chats, found["chats"], strict=True):
        assert words.chat is not None
        known = [Message(one["role"], one["content"]) for one in messages]
        assert TemplateProcess(words.chat.source, words.chat.variables).render(known, time.time()) == text
        assert words.chat.render(known) == tuple(ids)
