"""Writes the format of the `tokenizers` library: https://github.com/huggingface/tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.checkpoints.tokenizers.spelling import BYTE_LETTERS

_LETTERS = {byte: letter for letter, byte in BYTE_LETTERS.items()}


def of_ranks(pattern: str, ranks: Mapping[bytes, int], special_ids: Mapping[str, int]) -> dict[str, Any]:
    """A byte-pair encoding of tiktoken: `pattern` splits a text, and `ranks` are the ids of the tokens.

    tiktoken joins two parts whenever the result is a token, the one with the lowest rank first. So every division of a
    token into two tokens becomes a merge.
    """
    merges = [
        [_spelled(token[:at]), _spelled(token[at:])]
        for token in sorted(ranks, key=ranks.__getitem__)
        for at in sorted(
            (at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks),
            key=lambda at: (ranks[token[:at]], ranks[token[at:]]),
        )
    ]
    return _content(
        # tiktoken takes a part of the text that is a token as it is, even if no merges lead to it.
        model=_bpe({_spelled(token): rank for token, rank in ranks.items()}, merges, ignore_merges=True),
        special_ids=special_ids,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    )


def of_characters(characters: str, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """A vocabulary of characters. The library leaves out unknown ones."""
    vocabulary = {character: token_id for token_id, character in enumerate(characters)}
    return _content(
        model=_bpe(vocabulary, [], ignore_merges=False),
        special_ids=special_ids,
        pre_tokenizer=None,
        decoder={"type": "Fuse"},
    )


def with_bos(content: dict[str, Any], name: str, bos_id: int) -> dict[str, Any]:
    """A tokenizer that puts BOS before every text if special tokens are to be added."""
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": letter, "type_id": i}} for i, letter in enumerate("AB"))
    processor = {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, second],
        "special_tokens": {name: {"id": name, "ids": [bos_id], "tokens": [name]}},
    }
    return {**content, "post_processor": processor}


def added_token(token_id: int, text: str, *, special: bool = True) -> dict[str, Any]:
    """A token that is found in a text before the text is divided."""
    return {
        "id": token_id,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _content(
    *,
    model: dict[str, Any],
    special_ids: Mapping[str, int],
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    vocabulary: dict[str, int] = model["vocab"]
    in_order = sorted(special_ids.items(), key=lambda item: item[1])
    # The library numbers added tokens from the end of the vocabulary, unless they are in it.
    if [token_id for _, token_id in in_order] != [*range(len(vocabulary), len(vocabulary) + len(in_order))]:
        vocabulary |= special_ids
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token_id, name) for name, token_id in in_order],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _bpe(vocabulary: dict[str, int], merges: list[list[str]], *, ignore_merges: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }


def _spelled(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
