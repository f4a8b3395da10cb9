"""The tokenizer of a GGUF file, in the format of the `tokenizers` library.

Two kinds are supported: byte-pair encodings with merges (`gpt2`) and SentencePiece's with scores (`llama`). The ids of
a text are those of the tokenizer that the file was made from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from tasks.library_errors import LibraryError, library_errors
from worker.checkpoints.tokenizers.huggingface_json import added_token
from worker.conversion.gguf.file import GgufFile
from worker.conversion.gguf.pre_tokenizers import PRE_TOKENIZERS, byte_level

#: Types of tokens.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
#: Metadata with the ids of special tokens, and Hugging Face's names.
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
#: SentencePiece's, if a file does not say.
_USUAL = {"unknown": 0, "bos": 1, "eos": 2}
#: Metadata with the ids of tokens that end a text.
_ENDS = ("eos", "eot", "eom")
#: Names of special tokens that end a text in models with several of them. A file has one, or two, of them as metadata.
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "</s>")
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokenizer:
    """What the files about a tokenizer have."""

    #: `tokenizer.json`.
    content: dict[str, Any]
    #: `tokenizer_config.json`.
    config: dict[str, Any]
    #: The ids of special tokens by the names of a `config.json`.
    ids: dict[str, int | list[int] | None]
    chat_template: str | None


def read_tokenizer(file: GgufFile, *, rows: int, context: int) -> GgufTokenizer:
    """The tokenizer of a model with `rows` ids. Raises CheckpointError."""
    return _Reader(file, rows).read(context)


class _Reader:
    """Reads the metadata of a tokenizer."""

    def __init__(self, file: GgufFile, rows: int) -> None:
        self._file = file
        kind = file.text("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            shown = "no tokenizer" if kind is None else f"a tokenizer of kind {kind}"
            raise file.error(f"has {shown} (tokenizer.ggml.model); gpt2 and llama are supported")
        self._kind = kind
        tokens, types = file.texts("tokenizer.ggml.tokens"), file.integers("tokenizer.ggml.token_type")
        if not tokens or types is None or len(types) != len(tokens):
            raise file.error("lacks tokenizer.ggml.tokens, or has not as many tokenizer.ggml.token_type")
        if len(tokens) > rows:
            raise file.error(f"has {len(tokens)} tokens, and its embedding only {rows} rows")
        # Rows of the embedding that no token uses have names of this form.
        while types[-1] == _UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
            del tokens[-1], types[-1]
        self._tokens, self._types = tokens, types
        self._ids = {token: token_id for token_id, token in enumerate(tokens)}
        if len(self._ids) < len(tokens):
            raise file.error("has two tokens with the same text")
        self._special = {name: self._special_id(name) for name in (*_SPECIAL, *_ENDS)}

    def read(self, context: int) -> GgufTokenizer:
        bos_id, eos_id = self._special["bos"], self._special["eos"]
        content, adds_bos = self._byte_pairs() if self._kind == "gpt2" else self._sentence_pieces()
        before = bos_id if self._flag("add_bos_token", adds_bos) else None
        after = eos_id if self._flag("add_eos_token", False) else None
        content["post_processor"] = self._post_processor(before, after)
        self._check(content)
        named = {own: self._special[name] for name, own in _SPECIAL.items()}
        ends = self._ends()
        return GgufTokenizer(
            content=content,
            config={
                "tokenizer_class": "PreTrainedTokenizerFast",
                **{own: self._tokens[one] for own, one in named.items() if one is not None},
                "clean_up_tokenization_spaces": False,
                "model_max_length": context,
            },
            ids={
                "bos_token_id": bos_id,
                "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
                "pad_token_id": named["pad_token"],
            },
            chat_template=self._file.text("tokenizer.chat_template"),
        )

    def _byte_pairs(self) -> tuple[dict[str, Any], bool]:
        """The tokenizer, and whether it puts BOS before a text unless the file says so."""
        name = self._file.text("tokenizer.ggml.pre")
        if name is None:
            name = "gpt-2" if self._file.text("general.architecture") == "gpt2" else None
        pre_tokenizer = PRE_TOKENIZERS.get(name or "")
        if pre_tokenizer is None:
            shown = "does not say how texts are divided" if name is None else f"divides texts as {name}"
            raise self._file.error(f"{shown} (tokenizer.ggml.pre); supported are {', '.join(PRE_TOKENIZERS)}")
        listed = self._file.texts("tokenizer.ggml.merges")
        if listed is None:
            raise self._file.error("lacks tokenizer.ggml.merges")
        # The first token of a merge may begin with a space.
        merges = [(merge[: (at := merge.find(" ", 1))], merge[at + 1 :]) for merge in listed]
        model = {**_MODEL, "ignore_merges": pre_tokenizer.ignore_merges, "merges": merges}
        content = self._content(
            model=model,
            added=self._added(),
            normalizer=pre_tokenizer.normalizer,
            pre_tokenizer=pre_tokenizer.content,
            decoder=byte_level(use_regex=True),
        )
        return content, pre_tokenizer.add_bos

    def _sentence_pieces(self) -> tuple[dict[str, Any], bool]:
        """As `_byte_pairs`."""
        scores = self._file.numbers("tokenizer.ggml.scores")
        if scores is None or len(scores) < len(self._tokens):
            raise self._file.error("lacks tokenizer.ggml.scores, or has not as many as tokens")
        if any(map(math.isnan, scores)):
            raise self._file.error("has scores of tokens that are not numbers")
        prefix = self._flag("add_space_prefix", True)
        unknown = self._special["unknown"]
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        prepend = {"type": "Prepend", "prepend": _SPACE}
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        model = {
            **_MODEL,
            "unk_token": None if unknown is None else self._tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": _BYTE in self._types,
            "merges": list(self._merges(scores)),
        }
        content = self._content(
            model=model,
            added=self._added(),
            normalizer={"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace,
            pre_tokenizer=None,
            decoder={"type": "Sequence", "decoders": decoders},
        )
        return content, True

    def _merges(self, scores: Sequence[float]) -> Iterator[tuple[str, str]]:
        """Every division of a piece into two, the piece with the highest score first.

        SentencePiece joins the two neighbours that give the piece with the highest score. Pieces that are not text,
        such as `</s>`, are never joined.
        """
        pieces = {
            token: token_id
            for token, token_id in self._ids.items()
            if self._types[token_id] not in (_UNKNOWN, _CONTROL, _BYTE)
        }
        for piece in sorted(pieces, key=lambda piece: (-scores[pieces[piece]], pieces[piece])):
            for at in range(1, len(piece)):
                if piece[:at] in pieces and piece[at:] in pieces:
                    yield piece[:at], piece[at:]

    def _added(self) -> dict[int, bool]:
        """The ids of tokens that are found in a text before it is divided, and whether they are special."""
        kinds = {_UNKNOWN: True, _CONTROL: True, _USER_DEFINED: False}
        added = {i: kinds[kind] for i, kind in enumerate(self._types) if kind in kinds}
        # Some files mark these as ordinary text.
        for name in ("bos", *_ENDS):
            if (token_id := self._special[name]) is not None:
                added[token_id] = True
        return dict(sorted(added.items()))

    def _content(self, *, model: dict[str, Any], added: dict[int, bool], **parts: Any) -> dict[str, Any]:
        vocabulary = self._ids
        first = len(self._tokens) - len(added)
        # The library numbers added tokens from the end of the vocabulary, unless they are in it.
        if [*added] == [*range(first, len(self._tokens))] and self._kind == "gpt2":
            vocabulary = {token: token_id for token, token_id in vocabulary.items() if token_id < first}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                added_token(token_id, self._tokens[token_id], special=special) for token_id, special in added.items()
            ],
            "post_processor": None,
            "model": {**model, "vocab": vocabulary},
            **parts,
        }

    def _post_processor(self, before: int | None, after: int | None) -> dict[str, Any] | None:
        """Puts special tokens around a text."""
        if before is None and after is None:
            return None

        def around(letters: str) -> list[dict[str, Any]]:
            texts = [{"Sequence": {"id": letter, "type_id": i}} for i, letter in enumerate(letters)]
            ends = [[] if one is None else [{"SpecialToken": {"id": self._tokens[one], "type_id": 0}}] for one in used]
            return [part for text in texts for part in (*ends[0], text, *ends[1])]

        used = (before, after)
        return {
            "type": "TemplateProcessing",
            "single": around("A"),
            "pair": around("AB"),
            "special_tokens": {
                self._tokens[one]: {"id": self._tokens[one], "ids": [one], "tokens": [self._tokens[one]]}
                for one in used
                if one is not None
            },
        }

    def _ends(self) -> list[int]:
        """The ids that end a text, the one of the metadata first."""
        named = (self._ids.get(name) for name in _END_NAMES)
        special = (one for one in named if one is not None and self._types[one] == _CONTROL)
        ends = (*(self._special[name] for name in _ENDS), *special)
        return [*dict.fromkeys(one for one in ends if one is not None)]

    def _special_id(self, name: str) -> int | None:
        found = self._file.integer(f"tokenizer.ggml.{name}_token_id")
        if found is None and self._kind == "llama":
            found = _USUAL.get(name)
        # llama.cpp ignores ids that are no tokens, too.
        return found if found is not None and 0 <= found < len(self._tokens) else None

    def _flag(self, name: str, default: bool) -> bool:
        value = self._file.flag(f"tokenizer.ggml.{name}")
        return default if value is None else value

    def _check(self, content: dict[str, Any]) -> None:
        """Raise CheckpointError if the library cannot load the tokenizer, or gives its tokens other ids."""
        try:
            with library_errors():
                loaded = tokenizers.Tokenizer.from_str(json.dumps(content))
                vocabulary = loaded.get_vocab(with_added_tokens=True)
        except LibraryError as error:
            raise self._file.error(f"has a tokenizer that the tokenizers library refuses: {error}") from error
        if vocabulary != self._ids:
            raise self._file.error("has a tokenizer to which the tokenizers library gives other ids")


#: The model of a tokenizer.json, without what differs.
_MODEL: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
