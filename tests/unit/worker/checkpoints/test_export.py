"""Tokenizers in the format of Hugging Face give the ids of the originals."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.cli.commands.export_tokenizer import command
from tasks.chat import Message
from tests.helpers.checkpoint_files import meta, write
from tests.helpers.huggingface_folders import GOLDEN_HF
from tests.helpers.tokenizer_files import SPECIALS, pickled
from worker.checkpoints.chat import ChatError
from worker.checkpoints.chat.template_process import TemplateProcess
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import Tokenizer, load_tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.checkpoints.tokenizers.export import ExportedTokenizer
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer
from worker.checkpoints.tokenizers.huggingface_config import HuggingFaceConfig

VOCAB_SIZE = 512
KINDS = ["guide", "characters", "tiktoken", "llama", "mistral"]
CHARACTERS = "01é😀=\n"


@cache
def original(kind: str) -> Tokenizer:
    if kind == "guide":
        return CharacterTokenizer.guide()
    if kind == "characters":
        return CharacterTokenizer(CHARACTERS, SPECIALS, unknown="refuse")
    if kind == "tiktoken":
        return BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE)
    file = GOLDEN_HF / kind / "tokenizer.json"
    return HuggingFaceTokenizer.from_json(file.read_bytes(), VOCAB_SIZE, HuggingFaceConfig.beside(file))


@cache
def exported(kind: str) -> ExportedTokenizer:
    return ExportedTokenizer.of(original(kind), context=128)


def library(content: dict[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer, to which names of special tokens are text."""
    found = tokenizers.Tokenizer.from_str(json.dumps(content))
    found.encode_special_tokens = True
    return found


@cache
def copy(kind: str) -> tokenizers.Tokenizer:
    return library(exported(kind).tokenizer)


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the é😀\n's'ſ12 \r\u0085<|bos|>"))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=texts)
def test_all_texts_have_the_same_ids(kind: str, text: str) -> None:
    words = original(kind)
    if kind == "characters":
        text = "".join(character for character in text if character in CHARACTERS)
    ids = list(words.encode(text).ids)
    assert copy(kind).encode(text, add_special_tokens=False).ids == ids
    bos = [words.bos_id] if words.prepend_bos else []
    assert copy(kind).encode(text).ids == bos + ids
    assert copy(kind).encode(text, "b" if kind in ("tiktoken", "llama") else "0").ids[: len(bos)] == bos


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_are_the_same_ids(kind: str) -> None:
    found = tokenizers.Tokenizer.from_str(json.dumps(exported(kind).tokenizer))
    for name, token_id in original(kind).special_ids.items():
        assert found.token_to_id(name) == token_id
        assert found.encode(name, add_special_tokens=False).ids == [token_id]
    assert max(found.get_vocab().values()) < VOCAB_SIZE  # no second name of a special token is left


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_can_be_exported_again(kind: str) -> None:
    words = exported(kind)
    config = HuggingFaceConfig(chat_template=words.config.get("chat_template"))
    again = HuggingFaceTokenizer.from_json(json.dumps(words.tokenizer).encode(), VOCAB_SIZE, config)
    for token_id in range(VOCAB_SIZE):
        assert again.token_bytes(token_id) == original(kind).token_bytes(token_id)
    text = "01" if kind in ("guide", "characters") else "the end <|bos|>"
    assert again.encode(text).ids == original(kind).encode(text).ids
    assert library(again.to_huggingface()).encode(text).ids == list(again.encode(text).ids)


def test_token_tables_that_no_training_makes_give_the_same_ids() -> None:
    """Tokens that merges reach in several ways, or not at all."""
    source = random.Random(7)
    for _ in range(30):
        ranks = {bytes([byte]): byte for byte in range(256)}
        known = [b"a", b"b", b"c", b" "]
        for _ in range(40):
            if source.random() < 0.15:
                token = bytes(source.choice(b"abc ") for _ in range(source.randint(2, 6)))
            else:
                token = source.choice(known) + source.choice(known)
            if token not in ranks and len(token) < 12:
                ranks[token] = len(ranks)
                known.append(token)
        special_tokens = {name: len(ranks) + 5 * i for i, name in enumerate(SPECIALS)}
        words = BpeTokenizer.from_pickle(pickled(mergeable_ranks=ranks, special_tokens=special_tokens), VOCAB_SIZE)
        found = library(words.to_huggingface())
        for _ in range(50):
            text = "".join(source.choice("abc ") for _ in range(source.randint(1, 40)))
            assert found.encode(text).ids == list(words.encode(text).ids)
        assert [found.token_to_id(name) for name in SPECIALS] == list(special_tokens.values())


def test_the_configuration_names_the_tokens_and_the_context() -> None:
    config = exported("tiktoken").config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<|bos|>",
        "<|assistant_end|>",
        "<|assistant_end|>",
    )
    assert config["model_max_length"] == 128
    guide = exported("guide").config
    assert (guide["bos_token"], guide["eos_token"]) == ("<|bos|>", "<|bos|>")
    assert "chat_template" not in guide
    llama = exported("llama").config
    assert (llama["bos_token"], llama["eos_token"]) == ("<|begin_of_text|>", "<|eot_id|>")


# nanochat's layout as a Jinja template

contents = st.text(st.characters(exclude_categories=["Cs"]).filter(lambda character: character not in "<|"), max_size=8)


@settings(deadline=None)
@given(st.none() | contents, st.lists(contents, min_size=1, max_size=5).filter(lambda found: len(found) % 2 == 1))
def test_the_template_renders_nanochats_layout(system: str | None, talk: list[str]) -> None:
    messages = [] if system is None else [Message("system", system)]
    messages += [Message("assistant" if i % 2 else "user", content) for i, content in enumerate(talk)]
    words = original("tiktoken")
    assert words.chat is not None
    found = tokenizers.Tokenizer.from_str(json.dumps(exported("tiktoken").tokenizer))
    ids = found.encode(template().render(messages, 0.0), add_special_tokens=False).ids
    assert tuple(ids) == words.chat.render(messages)


@cache
def template() -> TemplateProcess:
    return TemplateProcess(exported("tiktoken").config["chat_template"], {})


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        (["assistant"], "must alternate"),
        (["user", "user"], "must alternate"),
        (["user", "system"], "must alternate"),
        (["system"], "must be followed by one of the user"),
        (["system", "assistant"], "must be followed by one of the user"),
    ],
)
def test_the_template_refuses_what_nanochat_does(roles: list[str], words: str) -> None:
    with pytest.raises(ChatError, match=words):
        template().render([Message(role, "x") for role in roles], 0.0)


# The command


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write(tmp_path / "d4", content=meta(vocab_size=320))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.pkl").write_bytes(pickled())
    return folder


def test_the_command_writes_a_folder_that_celeriac_reads(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    result = CliRunner().invoke(command, [str(checkpoint), str(target)])
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in target.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert "<|bos|>, put before each text" in result.output
    before = load_tokenizer(find(str(checkpoint), tmp_path), 320)
    (checkpoint / "tokenizer" / "tokenizer.pkl").unlink()
    for file in target.iterdir():
        file.rename(checkpoint / "tokenizer" / file.name)
    after = load_tokenizer(find(str(checkpoint), tmp_path), 320)
    assert (before.kind, after.kind) == ("tiktoken", "huggingface")
    assert after.encode("the end <|bos|>") == before.encode("the end <|bos|>")
    assert (after.bos_id, after.prepend_bos, after.stop_ids) == (before.bos_id, before.prepend_bos, before.stop_ids)
    messages = [Message("system", "a"), Message("user", "the <|user_end|>")]
    assert before.chat is not None
    assert after.chat is not None
    assert after.chat.render(messages) == before.chat.render(messages)


def test_the_command_keeps_the_files_of_a_folder_unless_it_is_forced(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "full"
    target.mkdir()
    (target / "notes.txt").write_text("keep")
    (target / "chat_template.jinja").write_text("of another model")
    result = CliRunner().invoke(command, [str(checkpoint), str(target)])
    assert (result.exit_code, "is not empty" in result.output) == (1, True)
    assert not (target / "tokenizer.json").exists()
    result = CliRunner().invoke(command, [str(checkpoint), str(target), "--force"])
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in target.iterdir()) == ["notes.txt", "tokenizer.json", "tokenizer_config.json"]


def test_the_command_says_what_is_wrong_with_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer" / "tokenizer.pkl").unlink()
    for given_checkpoint, words in ((str(checkpoint), "no tokenizer"), ("none", "no such folder")):
        result = CliRunner().invoke(command, [given_checkpoint, str(tmp_path / "out")])
        assert (result.exit_code, words in result.output) == (1, True)
    assert not (tmp_path / "out").exists()
