"""Tokenizers in the shape of known ones do what transformers does: ids, texts and conversations.

`tests/fixtures/tokenizers/make.py` makes the folders. Those in tests/fixtures/golden-hf have a model, too.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tasks.chat import Message
from tests.helpers.huggingface_folders import FAMILIES, GOLDEN_HF
from tests.helpers.huggingface_folders import expected as golden
from tests.unit.worker.checkpoints.tokenizers.kinds import text_of
from worker.checkpoints.folder import find
from worker.checkpoints.sizes import sizes_of
from worker.checkpoints.tokenizers import load_tokenizer
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer
from worker.checkpoints.tokenizers.huggingface_config import HuggingFaceConfig
from worker.jobs.prompt import encode_prompt

FOLDERS = sorted(one.parent for one in (Path(__file__).parents[4] / "fixtures" / "tokenizers").glob("*/expected.json"))
VOCAB_SIZE = 1000
each_shape = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@cache
def expected(folder: Path) -> Any:
    return json.loads((folder / "expected.json").read_text())


@cache
def tokenizer(folder: Path) -> HuggingFaceTokenizer:
    file = folder / "tokenizer.json"
    return HuggingFaceTokenizer.from_json(file.read_bytes(), VOCAB_SIZE, HuggingFaceConfig.beside(file, frozenset()))


@each_shape
def test_a_prompt_has_the_ids_that_transformers_gives_it(folder: Path) -> None:
    words = tokenizer(folder)
    for one in expected(folder)["texts"]:
        ids = one["ids"]
        # A prompt does not end with EOS, even where the tokenizer adds it.
        added = len(ids) - len(one["plain_ids"]) - words.prepend_bos
        assert encode_prompt(words, one["text"])[0] == tuple(ids[: len(ids) - added])
        assert words.encode(one["text"]).ids == tuple(one["plain_ids"])


def test_characters_without_tokens_are_left_out_with_a_warning() -> None:
    """As in transformers, but the sender is told."""
    words = tokenizer(next(folder for folder in FOLDERS if folder.name == "smollm2"))
    encoding = words.encode("a\x04b\x06\x04")
    assert encoding.ids == words.encode("ab").ids
    assert encoding.skipped == ("\x04", "\x06")
    assert "left out of the prompt: '\\x04', '\\x06'" in encoding.warnings[0]
    assert all(not tokenizer(folder).encode("a\x04b").skipped for folder in FOLDERS if folder.name != "smollm2")


@each_shape
def test_the_text_of_an_answer_is_that_of_transformers(folder: Path) -> None:
    for one in expected(folder)["decoded"]:
        assert text_of(tokenizer(folder), one["answer"], one["prompt"]) == one["text"]


@each_shape
def test_the_special_tokens_are_those_of_transformers(folder: Path) -> None:
    words, special_ids = tokenizer(folder), set(expected(folder)["special_ids"])
    # It leaves out those that only tokenizer.json calls special, which it does not decode either.
    assert special_ids <= set(words.special_ids.values())
    assert all(words.token_bytes(token_id) is None for token_id in special_ids)


@each_shape
def test_a_conversation_has_the_ids_that_transformers_gives_it(folder: Path) -> None:
    for chat in expected(folder)["chats"]:
        template = tokenizer(folder).chat
        assert template is not None
        messages = [Message(one["role"], one["content"]) for one in chat["messages"]]
        # BOS is there once, even where the tokenizer adds it to texts.
        assert template.render(messages) == tuple(chat["ids"])


def test_the_shapes_differ_in_bos() -> None:
    adding = {folder.name for folder in FOLDERS if tokenizer(folder).prepend_bos}
    assert adding == {"llama2", "tinyllama", "mistral", "gemma", "unigram", "llama3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_of_a_model_has_the_ids_of_transformers(family: str) -> None:
    folder = find(str(GOLDEN_HF / family), GOLDEN_HF)
    words = load_tokenizer(folder, sizes_of(folder).vocab_size)
    for one in golden(family)["texts"]:
        assert encode_prompt(words, one["text"])[0] == tuple(one["ids"])
        assert words.encode(one["text"]).ids == tuple(one["plain_ids"])
        assert text_of(words, one["plain_ids"]) == one["text"]


def test_the_ids_that_end_a_text_are_those_of_the_files() -> None:
    """Not more: other special tokens are never sampled, and BOS does not end a text."""
    ends = {}
    for family in FAMILIES:
        folder = find(str(GOLDEN_HF / family), GOLDEN_HF)
        words = load_tokenizer(folder, sizes_of(folder).vocab_size)
        ends[family] = words.bos_id, set(words.stop_ids), words.card().eos_id
    assert ends == {
        "gpt2": (0, {0}, 0),
        "llama": (0, {1, 4}, 4),
        "mistral": (1, {2}, 2),
        "nanochat": (0, {0}, 0),
        "qwen2": (None, {2}, 2),
        "qwen3": (None, {2}, 2),
        "smollm3": (None, {2}, 2),
    }
