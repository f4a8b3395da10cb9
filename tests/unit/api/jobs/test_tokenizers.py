"""Published tokenizers: what they encode and decode, and how they are loaded and kept."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from api.jobs.tokenizers import EncodingFailedError, ServedTokenizer, ServedTokenizers
from api.openai.token_names import TokenNames
from tasks.card import Card, TokenizerCard
from tests.helpers.fake_worker import CARD
from tests.helpers.tokenizer_files import SPECIALS, TEXT_IDS, pickled
from worker.checkpoints.tokenizers import Tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.checkpoints.tokenizers.export import served_blob
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer
from worker.checkpoints.tokenizers.huggingface_config import HuggingFaceConfig

pytestmark = pytest.mark.anyio
FIXTURES = Path(__file__).parents[3] / "fixtures" / "tokenizers"
VOCAB_SIZE = 320
BOS = TEXT_IDS


@cache
def original() -> Tokenizer:
    return BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE)


@cache
def blob() -> bytes:
    return served_blob(original(), vocab_size=VOCAB_SIZE, context=128)


@cache
def served() -> ServedTokenizer:
    return ServedTokenizer.from_blob(blob())


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the é😀\n<|bos|>"))


@settings(deadline=None)
@given(texts)
def test_texts_have_the_ids_of_the_checkpoint_and_come_back(text: str) -> None:
    ids = list(original().encode(text).ids)
    assert served().encode(text, add_special=False, parse_special=False) == ids
    assert served().encode(text, add_special=True, parse_special=False) == [BOS, *ids]
    assert served().decode(ids) == text


def test_special_tokens_are_parsed_if_they_are_to_be() -> None:
    names = "".join(SPECIALS)
    ids = list(range(TEXT_IDS, TEXT_IDS + len(SPECIALS)))
    assert served().encode(names, add_special=False, parse_special=True) == ids
    assert served().encode(names, add_special=False, parse_special=False) == list(original().encode(names).ids)
    assert served().decode(ids) == names
    assert (served().bos_id, served().eos_id) == (BOS, BOS + 4)
    assert served().config["model_max_length"] == 128


def test_every_id_has_a_name() -> None:
    half = original().encode("😀 ").ids[0]
    assert (served().token_bytes(half), served().name(half)) == ("😀".encode(), "😀")
    assert (served().token_bytes(0xF0), served().name(0xF0)) == (b"\xf0", "\ufffd")
    assert (served().token_bytes(BOS), served().name(BOS)) == (None, "<|bos|>")
    for unused in (TEXT_IDS + len(SPECIALS), VOCAB_SIZE - 1, VOCAB_SIZE, 10**9, -1):
        assert (served().token_bytes(unused), served().name(unused)) == (None, f"token_id:{unused}")
        assert served().decode([unused]) == ""


@cache
def sentencepiece() -> tuple[Tokenizer, ServedTokenizer]:
    file = FIXTURES / "llama2" / "tokenizer.json"
    words = HuggingFaceTokenizer.from_json(file.read_bytes(), 1000, HuggingFaceConfig.beside(file, frozenset()))
    return words, ServedTokenizer.from_blob(served_blob(words, vocab_size=1000, context=128))


@settings(deadline=None)
@given(texts)
def test_a_text_of_a_sentencepiece_like_tokenizer_comes_back(text: str) -> None:
    words, found = sentencepiece()
    ids = found.encode(text, add_special=True, parse_special=False)
    assert ids == [1, *words.encode(text).ids]
    # Its first token begins with a space that the text does not have.
    assert found.decode(ids[1:]) == text
    assert "".join(TokenNames(found).pieces(ids)) == text


def test_the_tokens_of_a_sentencepiece_like_tokenizer_keep_their_spaces() -> None:
    words, found = sentencepiece()
    the = words.encode("the").ids[0]
    assert (found.token_bytes(the), found.first_bytes(the)) == (b" the", b"the")
    assert TokenNames(found).pieces([the, the]) == ["the", " the"]
    assert (found.first_bytes(1), found.first_bytes(3 + 0xF0)) == (None, b"\xf0")


def test_without_a_bos_nothing_is_put_before_a_text() -> None:
    characters = CharacterTokenizer("01", [], unknown="refuse")
    found = ServedTokenizer.from_blob(served_blob(characters, vocab_size=4, context=8))
    assert found.encode("10", add_special=True, parse_special=True) == [1, 0]
    assert (found.bos_id, found.eos_id) == (None, None)


def test_what_the_library_cannot_encode_is_an_error() -> None:
    for text in ("a\ud800", "a" * 4_000_001):
        with pytest.raises(EncodingFailedError):
            served().encode(text, add_special=False, parse_special=False)


def test_threads_may_share_a_tokenizer() -> None:
    def ids(parse: bool) -> list[int]:
        return served().encode("<|bos|>the", add_special=False, parse_special=parse)

    expected = {parse: ids(parse) for parse in (True, False)}
    wanted = [bool(i % 2) for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ids, wanted)) == [expected[parse] for parse in wanted]


# Loading


def card(digest: str, kind: str = "tiktoken") -> Card:
    return replace(CARD, digest=digest, tokenizer=TokenizerCard(kind=kind, text_ids=VOCAB_SIZE))


class Published:
    """What is published, and which of it was read."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.reads: list[str] = []

    async def read(self, digest: str) -> bytes | None:
        self.reads.append(digest)
        await asyncio.sleep(0)
        return self.blobs.get(digest)


async def test_a_tokenizer_is_loaded_once_for_all_who_wait() -> None:
    published = Published({"a": blob()})
    found = ServedTokenizers(published.read)
    one, two = await asyncio.gather(found.get(card("a")), found.get(card("a")))
    assert one is not None
    assert one is two
    assert await found.get(card("a")) is one
    assert published.reads == ["a"]


async def test_the_least_recently_used_goes_first() -> None:
    published = Published(dict.fromkeys("abc", blob()))
    found = ServedTokenizers(published.read, kept=2)
    for digest in "abacab":
        assert await found.get(card(digest)) is not None
    assert "".join(published.reads) == "abcb"


async def test_a_missing_one_is_looked_for_again() -> None:
    published = Published({})
    found = ServedTokenizers(published.read)
    assert await found.get(card("a")) is None
    published.blobs["a"] = blob()
    assert await found.get(card("a")) is not None


async def test_a_checkpoint_without_a_tokenizer_has_none() -> None:
    published = Published({"a": blob()})
    assert await ServedTokenizers(published.read).get(card("a", kind="none")) is None
    assert published.reads == []


async def test_an_error_of_redis_reaches_the_caller_and_is_not_kept() -> None:
    published = Published({"a": blob()})
    broken = True

    async def read(digest: str) -> bytes | None:
        if broken:
            raise ConnectionError("away")
        return await published.read(digest)

    found = ServedTokenizers(read)
    with pytest.raises(ConnectionError):
        await found.get(card("a"))
    broken = False
    assert await found.get(card("a")) is not None


def packed(**changes: Any) -> bytes:
    return gzip.compress(json.dumps(json.loads(gzip.decompress(blob())) | changes).encode())


DAMAGED = {
    "empty": b"",
    "not compressed": b"{}",
    "cut": blob()[:-20],
    "a changed byte": blob()[:100] + bytes([blob()[100] ^ 1]) + blob()[101:],
    "not JSON": gzip.compress(b"{"),
    "not UTF-8": gzip.compress(b"\xff"),
    "a list": gzip.compress(b"[]"),
    "deep": gzip.compress(b"[" * 1_000_000),
    "nothing in it": gzip.compress(b"{}"),
    "no tokenizer": packed(tokenizer={}),
    "a tokenizer that is no object": packed(tokenizer=1),
    "no list of texts": packed(token_bytes=1),
    "texts that are numbers": packed(token_bytes=[1]),
    "texts that are no base64": packed(token_bytes=["é"]),
    "no configuration": packed(config=[]),
    "no special tokens": packed(special=[]),
    "special tokens without ids": packed(special={"x": "y"}),
    "no choice of BOS": packed(add_bos="yes"),
}


@pytest.mark.parametrize("name", DAMAGED)
async def test_a_damaged_one_counts_as_missing_and_is_logged(name: str) -> None:
    published = Published({"a": DAMAGED[name]})
    with capture_logs() as logs:
        assert await ServedTokenizers(published.read).get(card("a")) is None
    assert [(line["event"], line["digest"]) for line in logs] == [("tokenizer_damaged", "a")]
    assert len(logs[0]["error"]) <= 200


async def test_one_that_is_too_large_counts_as_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.jobs.tokenizers.MAX_BYTES", 1000)
    with capture_logs() as logs:
        assert await ServedTokenizers(Published({"a": blob()}).read).get(card("a")) is None
    assert "larger than 1,000 bytes" in logs[0]["error"]


def test_equal_tokenizers_give_equal_blobs() -> None:
    assert served_blob(original(), vocab_size=VOCAB_SIZE, context=128) == blob()
    content = json.loads(gzip.decompress(blob()))
    assert len(content["token_bytes"]) == VOCAB_SIZE
    assert base64.b64decode(content["token_bytes"][ord("a")]) == b"a"


def test_the_library_is_imported_when_a_tokenizer_is_loaded() -> None:
    code = "import sys, api.jobs.tokenizers; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


#: Memory that a tokenizer may add to an API process, in MB.
MEMORY_MB = 120


def test_a_large_vocabulary_adds_little_memory(tmp_path: Any) -> None:
    """65,536 ids, as nanochat's larger models have."""
    source = random.Random(1)
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < 65_527:
        word = bytes(source.choices(b" etaoinshrdlucmfwypvbgkjqxz", k=source.randint(2, 8)))
        for end in range(2, len(word) + 1):
            if len(ranks) < 65_527:
                ranks.setdefault(word[:end], len(ranks))
    special_tokens = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
    words = BpeTokenizer.from_pickle(pickled(mergeable_ranks=ranks, special_tokens=special_tokens), 65_536)
    (tmp_path / "blob").write_bytes(served_blob(words, vocab_size=65_536, context=2048))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from api.jobs.tokenizers import ServedTokenizer\n"
        "def resident():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024\n"
        "blob = Path(sys.argv[1]).read_bytes()\n"
        "before = resident()\n"
        "found = ServedTokenizer.from_blob(blob)\n"
        "print(resident() - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "blob")]
    added_mb = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert added_mb < MEMORY_MB
