"""The ids of texts, and the special tokens."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.gguf_files import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, of_folder
from tests.unit.worker.conversion.gguf.test_families import GOLDEN
from worker.checkpoints.folder import find
from worker.checkpoints.tokenizers import load_tokenizer
from worker.checkpoints.tokenizers.spelling import BYTE_LETTERS
from worker.conversion.gguf.convert import read_gguf
from worker.conversion.model_folder import ModelFolder

LETTERS = sorted(BYTE_LETTERS, key=BYTE_LETTERS.__getitem__)


def model_with(tmp_path: Path, tokens: list[str], types: list[int], **metadata: Any) -> ModelFolder:
    """A model with a vocabulary of its own. Keys are those of `tokenizer.ggml`."""
    file = of_folder(GOLDEN / "llama")
    kind, table = file.tensors["token_embd.weight"]
    file.tensors["token_embd.weight"] = kind, np.resize(table, (len(tokens), table.shape[1]))
    file.tensors["output.weight"] = kind, np.resize(table, (len(tokens), table.shape[1]))
    for key in ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template"):
        file.metadata[key] = None
    file.metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    file.metadata |= {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return read_gguf(file.write(tmp_path / "model.gguf"))


def byte_pairs(tmp_path: Path, pre: str, **metadata: Any) -> ModelFolder:
    """A model with bytes, a few merges, and special tokens."""
    merged = ["he", "ll", "hell", "12", "Ġhe", "''", "é".encode().decode("latin-1")]
    tokens = [*LETTERS, *merged, "<|begin|>", "<|end|>", "<tool>"]
    types = [NORMAL] * (256 + len(merged)) + [CONTROL, CONTROL, USER_DEFINED]
    merges = ["h e", "l l", "he ll", "1 2", "Ġ he", "' '", "Ã ©"]
    return model_with(tmp_path, tokens, types, **{"pre": pre, "merges": merges, "bos_token_id": 263, **metadata})


def ids_of(model: ModelFolder, text: str, *, special: bool = True) -> list[int]:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(model.tokenizer))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    return ids


def spelled(model: ModelFolder, text: str) -> list[str]:
    """The tokens of a text."""
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(model.tokenizer))
    tokens: list[str] = tokenizer.encode(text, add_special_tokens=False).tokens
    return tokens


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        # Numbers: whole, digit by digit, three digits, one digit.
        ("gpt-2", ["hell", "o", "Ġ", "12", "12", "3"]),
        ("smollm", ["hell", "o", "Ġ", "1", "2", "1", "2", "3"]),
        ("llama-bpe", ["hell", "o", "Ġ", "12", "1", "2", "3"]),
        ("smaug-bpe", ["hell", "o", "Ġ", "12", "1", "2", "3"]),
        ("qwen2", ["hell", "o", "Ġ", "1", "2", "1", "2", "3"]),
        ("tekken", ["hell", "o", "Ġ", "1", "2", "1", "2", "3"]),
    ],
)
def test_a_text_is_divided_as_the_file_says(pre: str, tokens: list[str], tmp_path: Path) -> None:
    assert spelled(byte_pairs(tmp_path, pre), "hello 12123") == tokens


def test_merges_are_ignored_for_whole_tokens_where_the_model_does_so(tmp_path: Path) -> None:
    merges = ["l l", "h e", "1 2", "Ġ he", "' '", "Ã ©"]
    assert spelled(byte_pairs(tmp_path, "llama-bpe", merges=merges), "hell") == ["hell"]
    assert spelled(byte_pairs(tmp_path, "smaug-bpe", merges=merges), "hell") == ["he", "ll"]


def test_qwen_composes_characters(tmp_path: Path) -> None:
    assert spelled(byte_pairs(tmp_path, "qwen2"), "e\u0301") == ["Ã©"]
    assert spelled(byte_pairs(tmp_path, "llama-bpe"), "e\u0301") == ["e", "Ì", "ģ"]


def test_bos_comes_before_a_text_where_the_file_or_the_model_says_so(tmp_path: Path) -> None:
    plain = ids_of(byte_pairs(tmp_path, "gpt-2"), "hi")
    assert plain == [LETTERS.index("h"), LETTERS.index("i")]
    assert ids_of(byte_pairs(tmp_path, "llama-bpe"), "hi") == [263, *plain]
    assert ids_of(byte_pairs(tmp_path, "llama-bpe", add_bos_token=False), "hi") == plain
    both = byte_pairs(tmp_path, "gpt-2", add_bos_token=True, add_eos_token=True, eos_token_id=264)
    assert ids_of(both, "hi") == [263, *plain, 264]


def test_special_tokens_are_found_in_a_text_and_written_to_the_configuration(tmp_path: Path) -> None:
    model = byte_pairs(tmp_path, "smollm", eos_token_id=264, padding_token_id=264)
    assert spelled(model, "he<|end|><tool>") == ["he", "<|end|>", "<tool>"]
    added = {token["content"]: token["special"] for token in model.tokenizer["added_tokens"]}
    assert added == {"<|begin|>": True, "<|end|>": True, "<tool>": False}
    assert {name: model.tokenizer_config.get(f"{name}_token") for name in ("bos", "eos", "pad", "unk")} == {
        "bos": "<|begin|>",
        "eos": "<|end|>",
        "pad": "<|end|>",
        "unk": None,
    }
    assert model.generation_config == {"bos_token_id": 263, "eos_token_id": 264, "pad_token_id": 264}
    assert model.config["eos_token_id"] == 264


def test_all_tokens_that_end_a_text_are_stop_ids(tmp_path: Path) -> None:
    tokens = [*LETTERS, "he", "<|endoftext|>", "<|im_end|>", "</s>", "<|eom_id|>"]
    types = [NORMAL] * 257 + [CONTROL, CONTROL, NORMAL, CONTROL]
    model = model_with(tmp_path, tokens, types, pre="qwen2", merges=["h e"])
    assert model.generation_config["eos_token_id"] == [257, 260, 258]


def test_unused_rows_of_the_embedding_have_no_token(tmp_path: Path) -> None:
    file = of_folder(GOLDEN / "qwen2")
    assert file.metadata["tokenizer.ggml.tokens"][-1] == "[PAD447]"
    model = read_gguf(file.write(tmp_path / "model.gguf"))
    assert model.config["vocab_size"] == 448
    assert not any(name.startswith("[PAD") for name in model.tokenizer["model"]["vocab"])


CORPUS = "the cat sat on the mat, then the hat\u2581that the cat had sat on was at the oven; a theatre there"


def sentence_pieces() -> tuple[list[str], list[int], list[float]]:
    """Tokens, types and scores as SentencePiece's trainer makes them: each piece joins the most frequent neighbours."""
    words = list(CORPUS.replace(" ", "\u2581"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    scores = [0.0] * len(tokens)
    pieces: list[str] = []
    for _ in range(25):
        pairs = list(pairwise(words))
        left, right = max(sorted(set(pairs)), key=pairs.count)
        pieces.append(left + right)
        at = 0
        while at < len(words) - 1:
            if (words[at], words[at + 1]) == (left, right):
                words[at : at + 2] = [left + right]
            at += 1
    pieces = [*dict.fromkeys(pieces), *sorted(set(CORPUS.replace(" ", "\u2581")))]
    tokens += [*pieces, "<tool>", *(more := ["</", "s>", "<", "/", ">"])]
    types += [*[NORMAL] * len(pieces), USER_DEFINED, *[NORMAL] * len(more)]
    scores += [-float(rank) for rank in range(len(tokens) - len(scores))]
    return tokens, types, scores


def join(text: str, tokens: list[str], types: list[int], scores: list[float]) -> list[str]:
    """SentencePiece's algorithm: it joins the neighbours that give the piece with the highest score, from the left."""
    known = {token: scores[i] for i, token in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    parts = list(text)
    while True:
        joined = [(known.get(a + b, -np.inf), -at) for at, (a, b) in enumerate(pairwise(parts))]
        if not joined or max(joined)[0] == -np.inf:
            return [
                spelt
                for part in parts
                for spelt in ([part] if part in known else [f"<0x{b:02X}>" for b in part.encode()])
            ]
        at = -max(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def of_pieces(tmp_path: Path, **metadata: Any) -> ModelFolder:
    tokens, types, scores = sentence_pieces()
    return model_with(
        tmp_path, tokens, types, **{"model": "llama", "pre": None, "merges": None, "scores": scores, **metadata}
    )


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return of_pieces(tmp_path_factory.mktemp("pieces"))


@given(st.text(st.sampled_from("thecaons ,;\u00e9\U0001f642"), max_size=40))
def test_pieces_with_scores_are_joined_as_sentencepiece_joins_them(pieces: ModelFolder, text: str) -> None:
    expected = join("\u2581" + text.replace(" ", "\u2581"), *sentence_pieces()) if text else []
    assert spelled(pieces, text) == expected


def test_texts_of_pieces_come_back(pieces: ModelFolder) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(pieces.tokenizer))
    for text in ("the cat", " the  cat ", "naïve 🙂\n", "then"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_puts_bos_before_a_text_and_no_text_is_a_special_token(pieces: ModelFolder) -> None:
    assert ids_of(pieces, "the")[0] == 1
    assert pieces.generation_config == {"bos_token_id": 1, "eos_token_id": 2}
    assert pieces.tokenizer_config["unk_token"] == "<unk>"
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(pieces.tokenizer))
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("the</s>", add_special_tokens=False).tokens[-2:] == ["</", "s>"]


def test_celeriac_reads_a_vocabulary_of_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = of_pieces(tmp_path)
    model.write_into(folder, lambda size: None)
    tokenizer = load_tokenizer(find(str(folder), tmp_path), model.config["vocab_size"])
    assert (tokenizer.bos_id, tokenizer.prepend_bos, tokenizer.stop_ids) == (1, True, {2})
    for text in ("the cat sat", " the", "é 🙂", "</s>"):
        ids = tokenizer.encode(text).ids
        assert 2 not in ids
        assert b"".join(tokenizer.token_bytes(i) or b"" for i in ids).decode() == " " + text


def test_a_file_may_turn_off_the_space_before_a_text(tmp_path: Path) -> None:
    model = of_pieces(tmp_path, add_space_prefix=False, add_bos_token=False)
    assert not spelled(model, "the cat")[0].startswith("\u2581")
    assert ids_of(model, "the") == ids_of(model, "the", special=False)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(model.tokenizer))
    assert tokenizer.decode(tokenizer.encode(" the").ids) == " the"
