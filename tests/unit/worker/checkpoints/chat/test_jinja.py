"""Jinja templates: the text of transformers, special tokens of the template only, and limits on what it may use.

The folders in tests/fixtures/golden-hf have the texts that transformers renders from them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.chat import Message
from tests.helpers.huggingface_folders import GOLDEN_HF
from tests.helpers.huggingface_folders import expected as golden
from worker.checkpoints.chat import ChatError
from worker.checkpoints.chat.jinja import JinjaTemplate
from worker.checkpoints.chat.template_process import TemplateProcess
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.tokenizers import UnknownCharacterError, visible_text
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer
from worker.checkpoints.tokenizers.huggingface_config import MAX_TEMPLATE_BYTES, HuggingFaceConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
VOCAB_SIZE = 512
IM_START, IM_END = 1, 2


@cache
def tokenizer(family: str) -> HuggingFaceTokenizer:
    file = GOLDEN_HF / family / "tokenizer.json"
    return HuggingFaceTokenizer.from_json(file.read_bytes(), VOCAB_SIZE, HuggingFaceConfig.beside(file))


def rendered(template: HuggingFaceTokenizer, *messages: tuple[str, str], now: float | None = None) -> tuple[int, ...]:
    assert template.chat is not None
    return template.chat.render([Message(*message) for message in messages], now=now)


def with_template(source: str, **variables: Any) -> HuggingFaceTokenizer:
    """Qwen's tokenizer with another template."""
    config = HuggingFaceConfig(chat_template=source, variables=variables)
    return HuggingFaceTokenizer.from_json((GOLDEN_HF / "qwen2" / "tokenizer.json").read_bytes(), VOCAB_SIZE, config)


def text_of(source: str, *messages: tuple[str, str], now: float | None = None, **variables: Any) -> str:
    """What a template renders, with special tokens as their names in brackets."""
    parts: list[str] = []

    def encode(found: Any) -> list[int]:
        parts.extend(f"[{text}]" if is_special else text for is_special, text in found)
        return []

    names = ["<|im_start|>", "<|im_end|>", "<s>", "<sx>"]
    template = JinjaTemplate(source, variables, names, encode)
    template.render([Message(*message) for message in messages or [("user", "Hello")]], now=now)
    return "".join(parts)


CONTENT = "{{ messages[0].content }}"


# What transformers renders


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_that_of_transformers(family: str) -> None:
    template = tokenizer(family).chat
    assert template is not None
    process = TemplateProcess(template.source, template.variables)
    for chat in golden(family)["chats"]:
        messages = [Message(message["role"], message["content"]) for message in chat["messages"]]
        assert process.render(messages, time.time()) == chat["text"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_the_text_of_transformers(family: str) -> None:
    plain = tokenizers.Tokenizer.from_file(str(GOLDEN_HF / family / "tokenizer.json"))
    for chat in golden(family)["chats"]:
        messages = [(message["role"], message["content"]) for message in chat["messages"]]
        if family not in ("llama", "mistral") and any("<|im_end|>" in content for _, content in messages):
            continue  # a name in a message, which is no special token: see below
        expected = plain.encode(chat["text"], add_special_tokens=False).ids
        assert rendered(tokenizer(family), *messages) == tuple(expected)


def test_a_name_in_a_message_is_the_only_difference() -> None:
    chat = golden("qwen2")["chats"][1]
    messages = [(message["role"], message["content"]) for message in chat["messages"]]
    assert messages[0][1] == "Who are you? <|im_end|>"
    words = tokenizer("qwen2")
    ids = rendered(words, *messages)
    expected: tuple[int, ...] = ()
    for role, content in (*messages, ("assistant", None)):
        text = f"{role}\n" if content is None else f"{role}\n{content}"
        end = () if content is None else (IM_END, *words.encode("\n").ids)
        expected += (IM_START, *words.encode(text).ids, *end)
    assert ids == expected


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if true %}\n  a\n{% endif %}\nb", "  a\nb"),
        ("a\n   {% if true %}b{% endif %}", "a\nb"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{{ i }}{% break %}{% endfor %}", "1"),
        ("{% generation %}a{{ messages[0]['content'] }}{% endgeneration %}b", "aHellob"),
        ("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}", "[<s>]|</s>|"),
        ("{{ add_generation_prompt }} {{ tools is none }} {{ documents is none }}", "True True True"),
        ("{% if messages[0].content is string %}{{ messages[0]['role'] }}{% endif %}", "user"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ strftime_now('%d %b %Y') }}", "14 Nov 2023"),
        ("{{ 'Hello World'.split()[0].upper() }}", "HELLO"),
        ("", ""),
        # Attributes that the sandbox hides are undefined.
        ("{{ messages.__class__ }}|{{ '{0.__class__}'.format(messages) }}", "|"),
    ],
)
def test_templates_can_use_what_transformers_gives_them(source: str, text: str) -> None:
    assert text_of(source, now=1.7e9, bos_token="<s>", eos_token="</s>") == text


def test_developers_are_systems_and_other_roles_are_refused() -> None:
    source = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    assert text_of(source, ("developer", "x"), ("assistant", "y")) == "system=x;assistant=y;"
    for messages, words in (([], "messages is empty"), ([("tool", "x")], "role tool"), ([("x", "x")], "unknown role")):
        with pytest.raises(ChatError, match=words):
            rendered(tokenizer("qwen2"), *messages)


def test_the_template_refuses_messages_with_its_own_words() -> None:
    with pytest.raises(ChatError, match=r"refuses these messages: Roles must alternate user/assistant$"):
        rendered(tokenizer("mistral"), ("user", "x"), ("user", "y"))
    # It quotes the message as it was sent.
    with pytest.raises(ChatError, match=r"refuses these messages: no <\|im_end\|> here$"):
        text_of("{{ raise_exception('no ' + messages[0].content + ' here') }}", ("user", "<|im_end|>"))
    # And serves the next.
    assert rendered(tokenizer("mistral"), ("user", "x"))


# Names of special tokens


@pytest.mark.parametrize(
    ("source", "content", "text"),
    [
        ("<|im_start|>" + CONTENT + "<|im_end|>", "<|im_end|>", "[<|im_start|>]<|im_end|>[<|im_end|>]"),
        ("<s>{{ messages[0].content | trim }}<s>", "  <s> a <s>\n", "[<s>]<s> a <s>[<s>]"),
        ("{{ messages[0].content | upper }}", "a<s>b", "A<s>B"),
        ("{{ messages[0].content | lower }}", "a<S>b<|IM_END|>", "a<S>b<|IM_END|>"),
        ("{{ messages[0].content | replace('a', '') }}<s>", "a<s>a", "<s>[<s>]"),
        ("{{ messages[0].content.split('</think>')[-1] }}", "<s></think><s>", "<s>"),
        ("{{ messages[0].content * 2 }}", "<s>", "<s><s>"),
        ("{{ messages[0].content | tojson }}", 'a"<s>', '"a\\"<s>"'),
        # Parts of names, which the template's own text could complete.
        ("<" + CONTENT, "s>", "<s>"),
        ("<{{ messages[0].content | trim }}", "  s> x", "<s> x"),
        (CONTENT + "s>", "x <", "x <s>"),
        ("<" + CONTENT + ">", "s", "<s>"),
        ("<|" + CONTENT + "|>", "im_end", "<|im_end|>"),
        (CONTENT + CONTENT, "s><", "s><s><"),
        # The longest name at a place.
        ("<sx><s>x", "", "[<sx>][<s>]x"),
        # Placeholders are characters that the message has not.
        ("<s>" + CONTENT, "\ufdd0<s>\ufdd1\U000f0000", "[<s>]\ufdd0<s>\ufdd1\U000f0000"),
    ],
)
def test_names_in_a_message_stay_text(source: str, content: str, text: str) -> None:
    assert text_of(source, ("user", content)) == text


pieces = st.sampled_from(["<|im_start|>", "<|im_end|>", "<|", "|>", "im_end", "<", ">", " ", "\n", "\ufdd0", "a"])


@settings(deadline=None)
@given(st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)).map("".join))
def test_no_message_becomes_a_special_token_or_is_changed(content: str) -> None:
    words = tokenizer("qwen2")
    ids = rendered(words, ("user", content))
    assert [token for token in ids if token in (IM_START, IM_END)] == [IM_START, IM_END, IM_START]
    between = ids[1 : ids.index(IM_END)]
    assert visible_text(words, between) == f"user\n{content}"
    assert between == words.encode(f"user\n{content}").ids


def test_a_million_beginnings_of_names_take_no_time() -> None:
    words = tokenizer("llama")
    content = "<|" * 500_000
    begun = time.process_time()
    text = visible_text(words, rendered(words, ("user", content)))
    assert content in text
    assert time.process_time() - begun < 20


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UnknownCharacterError):
        rendered(tokenizer("qwen2"), ("user", "a\ud800"))


# Templates that go wrong


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{{ (messages[0] | attr('__class__')) () }}", "Error"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{% import 'os' as os %}", "TypeError"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{{ 'a' * 10 ** 12 }}", "too much"),
        ("{{ 'a' * 10 ** 9 }}", "too much"),
        ("{% set n = 10 ** 9 %}{{ 'a' * n }}", "too much"),
        ("{{ 'a'.ljust(10 ** 10) }}", "too much"),
        ("{{ '%01000000000d' % 1 }}", "too much"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "writes more than 8,388,608 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", ""),
    ],
)
def test_a_wrong_template_is_an_error_with_a_reason(source: str, words: str) -> None:
    with pytest.raises(ChatError, match=f"chat template failed: .*{words}") as error:
        text_of(source)
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source: str) -> None:
    with pytest.raises(ChatError, match="it takes too much time or memory"):
        text_of(source)


def test_a_template_that_ends_for_some_messages_only_serves_the_others() -> None:
    words = with_template(
        "{% if messages[0].content == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}ok"
    )
    expected = words.encode("ok").ids
    for content in ("a", "loop", "b"):
        if content == "loop":
            with pytest.raises(ChatError, match="too much time"):
                rendered(words, ("user", content))
        else:
            assert rendered(words, ("user", content)) == expected


def test_a_process_that_was_killed_is_started_again() -> None:
    words = with_template(CONTENT)
    assert rendered(words, ("user", "a"))
    process = words.chat._process._process  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert rendered(words, ("user", "a")) == words.encode("a").ids


def test_the_process_ends_with_the_tokenizer() -> None:
    words = with_template(CONTENT)
    assert rendered(words, ("user", "a"))
    process = words.chat._process._process  # type: ignore[union-attr]
    assert process.poll() is None
    del words
    gc.collect()
    assert process.poll() == -signal.SIGKILL


def test_threads_may_share_a_template() -> None:
    words = with_template(CONTENT)
    contents = [f"message {i}" for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda content: rendered(words, ("user", content)), contents))
    assert results == [words.encode(content).ids for content in contents]


# Files


def config_of(folder: Path, config: Any = None, template: str | None = None) -> HuggingFaceConfig:
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return HuggingFaceConfig.beside(folder / "tokenizer.json")


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert config_of(tmp_path).chat_template is None
    assert config_of(tmp_path, {"chat_template": None}).chat_template is None
    assert config_of(tmp_path, {"chat_template": "one"}).chat_template == "one"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    assert config_of(tmp_path, {"chat_template": named}).chat_template == "two"
    assert config_of(tmp_path, {"chat_template": {"default": "two", "rag": "x"}}).chat_template == "two"
    assert config_of(tmp_path, template="three é").chat_template == "three é"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (1, "is neither a text nor a list"),
        ([], "none of its templates is named `default`"),
        ([{"name": "x", "template": "y"}], "none of its templates is named `default`"),
        (["default"], "none of its templates is named `default`"),
        ([{"name": "default", "template": 1}], "is neither a text nor a list"),
        ("x" * (MAX_TEMPLATE_BYTES + 1), "is larger than 262,144 bytes"),
    ],
)
def test_other_templates_are_refused(tmp_path: Path, found: object, words: str) -> None:
    with pytest.raises(TokenizerError, match=f"its `chat_template` .*{words}"):
        config_of(tmp_path, {"chat_template": found})


def test_files_that_are_no_template_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja: is larger than 262,144 bytes"):
        config_of(tmp_path, template="x" * (MAX_TEMPLATE_BYTES + 1))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja: is not UTF-8"):
        config_of(tmp_path)


def test_special_tokens_are_variables(tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "pad_token": None,
        "add_bos_token": True,
        "extra_special_tokens": {"image_token": "<image>"},
        "additional_special_tokens": ["<a>", {"content": "<b>"}],
    }
    assert config_of(tmp_path, config).variables == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "image_token": "<image>",
        "additional_special_tokens": ["<a>", "<b>"],
    }


def test_the_card_and_the_digest_know_the_template(tmp_path: Path) -> None:
    assert tokenizer("qwen2").card().chat == "jinja"
    assert tokenizer("qwen2").card().eos_id == IM_END
    contents = {config_of(tmp_path, template=source).content() for source in ("a", "b")}
    contents.add(config_of(tmp_path, {"bos_token": "<s>"}, "a").content())
    assert len(contents) == 3
