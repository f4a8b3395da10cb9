"""Small tokenizers of every kind, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from hypothesis import settings
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.helpers.tokenizer_files import SPECIALS, pickled
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers import Tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer

VOCAB_SIZE = 320
#: Other processes share the machine, so the time of an example proves nothing.
without_deadline = settings(deadline=None)
GUIDE_CONFIG: dict[str, Any] = {"vocab_chars": list("0123456789+-="), "special_tokens": ["<|bos|>"], "vocab_size": 32}


@cache
def byte_level() -> str:
    """A byte-level tokenizer.json, as `tokenizers` trains it for nanochat."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"th": 256, "the": 257, "Ġt": 258}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e"), ("Ġ", "t")], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer.to_str()


@cache
def metaspace() -> str:
    """A tokenizer.json in the style of SentencePiece: a space is U+2581, a byte is <0xNN>."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁theé", "▁t", "▁th"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[("▁", "t"), ("▁t", "h")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer.to_str()


@cache
def unigram() -> str:
    """A tokenizer.json with a unigram model, in the style of SentencePiece."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁theé", "▁t", "▁th"]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram([(name, -float(len(names) - i)) for i, name in enumerate(names)], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer.to_str()


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "guide":
        return CharacterTokenizer.guide()
    if kind == "characters":
        return CharacterTokenizer.from_config(GUIDE_CONFIG | {"vocab_chars": "01é😀=\n"}, 32)
    if kind == "tiktoken":
        return BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE)
    return HuggingFaceTokenizer.from_json((byte_level() if kind == "byte-level" else metaspace()).encode(), VOCAB_SIZE)


#: Tokenizers that can spell every text.
OPEN = ["tiktoken", "byte-level", "metaspace"]
ALL = ["guide", "characters", *OPEN]


def decoded(words: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The piece of each token."""
    decoder = words.decoder()
    return [decoder.push(token_id) for token_id in ids]


def text_of(words: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> str:
    """The text of an answer."""
    decoder = words.decoder(prompt)
    return "".join([*map(decoder.push, ids), decoder.finish()])


def folder_at(path: Path) -> CheckpointFolder:
    path.mkdir(parents=True, exist_ok=True)
    return CheckpointFolder(
        path=path, name=path.name, step=7, model_file=path / "model_000007.pt", meta_file=path / "meta_000007.json"
    )
