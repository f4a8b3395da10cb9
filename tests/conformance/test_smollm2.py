"""SmolLM2-135M-Instruct, converted from its GGUF file, answers as transformers does: ids, texts, and conversations."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.chat import Message
from tests.conformance.client_environment import ClientEnvironment
from tests.conftest import running_redis
from tests.helpers.smollm2 import smollm2_gguf
from tests.integration.stack import ROOT, Stack
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.checkpoints.tokenizers import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NAME = "SmolLM2-135M-Instruct"
PROMPTS = 200
MAX_TOKENS = 12
#: Two logits that differ by less are a near tie: sums are in another order in transformers, and 30 layers add to that.
NEAR_TIE = 2e-2
#: The id of `<|im_end|>`, which ends an answer.
EOS = 2
#: Requests that wait at the same time, so that many texts decode in one batch.
AT_ONCE = 32
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi! This is how I end."},
        {"role": "user", "content": "  spaces,\n\nlines and 😀 é ẞ 日本語 \t"},
    ],
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The model as a folder of Hugging Face."""
    file = smollm2_gguf()
    home = Path(tempfile.mkdtemp(prefix="cel-"))
    folder = home / NAME
    subprocess.run([sys.executable, "-m", "celeriac", "convert", str(file), str(folder)], check=True, cwd=ROOT)
    yield folder
    shutil.rmtree(home)


def prompts() -> list[str]:
    """Beginnings of paragraphs from this repository's documentation and code, of 1 to 60 words, and other scripts."""
    texts = [
        "Once upon a time",
        "The capital of Japan is",
        "1, 2, 3, 4,",
        "日本の首都は",
        "Привет, как",
        "def fibonacci(n):",
    ]
    files = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "worker").glob("*.py"))]
    for file in files:
        for paragraph in file.read_text().split("\n\n"):
            words = paragraph.split(" ")
            texts.append(" ".join(words[: 1 + len(texts) * 7 % 60]))
    # Here a name of a special token in a prompt is text, and there it is the token.
    return [text for text in texts if text.strip() and "<|" not in text][:PROMPTS]


async def completions(url: str, texts: list[str]) -> list[dict[str, Any]]:
    """The greedy completion of each text, with the ids of its tokens."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(client: httpx.AsyncClient, text: str) -> dict[str, Any]:
        body = {"model": NAME, "prompt": text, "max_tokens": MAX_TOKENS, "temperature": 0, "logprobs": 0}
        async with gate:
            response = await client.post(f"{url}/v1/completions", json={**body, "return_tokens_as_token_ids": True})
        assert response.status_code == 200, response.text
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice

    async with httpx.AsyncClient(timeout=300) as client:
        return list(await asyncio.gather(*(one(client, text) for text in texts)))


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers answers."""
    environment = ClientEnvironment("clients", tmp_path_factory.mktemp("home"))
    arguments = {"folder": str(folder), "prompts": prompts(), "chats": CHATS, "max_tokens": MAX_TOKENS}
    found: dict[str, Any] = environment.script("greedy_answers", arguments, timeout_s=900)
    return found


def test_greedy_answers_are_those_of_transformers_up_to_near_ties(folder: Path, expected: dict[str, Any]) -> None:
    texts = prompts()
    assert len(texts) == PROMPTS
    home = Path(tempfile.mkdtemp(prefix="cel-"))
    with running_redis(home) as redis_url:
        stack = Stack(f"{redis_url}?db=0", home)
        try:
            worker = stack.worker(str(folder), wait=False)
            _, url = stack.api()
            worker.wait_for_line(" ready.")
            choices = asyncio.run(completions(url, texts))
        finally:
            stack.close()
    shutil.rmtree(home)
    equal = 0
    for text, choice, answer in zip(texts, choices, expected["answers"], strict=True):
        ids = [int(token.removeprefix("token_id:")) for token in choice["logprobs"]["tokens"]]
        if ids == answer["answer"]:
            equal += 1
            assert choice["text"] == answer["text"], text
            continue
        at = next((i for i, pair in enumerate(zip(ids, answer["answer"], strict=False)) if pair[0] != pair[1]), None)
        at = min(len(ids), len(answer["answer"])) if at is None else at
        logits = answer["steps"][at]
        ours = logits.get(str(ids[at]) if at < len(ids) else str(EOS))
        assert ours is not None, f"{text!r} takes another way at token {at}"
        assert max(logits.values()) - ours < NEAR_TIE, f"{text!r} takes another way at token {at}"
    assert equal >= 0.9 * PROMPTS


def test_prompts_and_conversations_are_encoded_as_in_transformers(folder: Path, expected: dict[str, Any]) -> None:
    found = find(str(folder), folder.parent)
    tokenizer = load_tokenizer(found, load(found).config.vocab_size)
    for text, answer in zip(prompts(), expected["answers"], strict=True):
        assert list(tokenizer.encode(text).ids) == answer["prompt"]
    assert tokenizer.chat is not None
    names = {token_id: name.encode() for name, token_id in tokenizer.special_ids.items()}
    for messages, text in zip(CHATS, expected["chats"], strict=True):
        ids = tokenizer.chat.render([Message(one["role"], one["content"]) for one in messages])
        assert b"".join(names.get(one) or tokenizer.token_bytes(one) or b"" for one in ids).decode() == text
