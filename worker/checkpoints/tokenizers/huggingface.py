"""Hugging Face's `tokenizer.json`, the file format of the `tokenizers` library.

Source: https://github.com/huggingface/tokenizers
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from tasks.card import TokenizerCard
from tasks.library_errors import LibraryError, library_errors
from worker.checkpoints.chat import ChatTemplate
from worker.checkpoints.chat.jinja import JinjaTemplate
from worker.checkpoints.chat.nanochat import NanochatTemplate
from worker.checkpoints.tokenizers.base import (
    Decoder,
    Encoding,
    TokenizerFailedError,
    UnknownCharacterError,
    refuse_surrogates,
    tool_ids_of,
)
from worker.checkpoints.tokenizers.huggingface_config import CONFIG_NAME, HuggingFaceConfig
from worker.checkpoints.tokenizers.huggingface_ends import Ends
from worker.checkpoints.tokenizers.huggingface_text import TokenTexts, keeps_whole_text, state_of
from worker.checkpoints.tokenizers.incremental import BytesDecoder, TokenDecoder
from worker.checkpoints.tokenizers.special_aliases import SpecialAliases, is_alias

#: For a tokenizer without files beside it.
_NO_CONFIG = HuggingFaceConfig()


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, with byte-level or SentencePiece-like tokens."""

    kind = "huggingface"

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        texts: TokenTexts,
        specials: Mapping[str, int],
        ends: Ends,
        config: HuggingFaceConfig,
    ) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        #: Whether the folder is nanochat's. There a text with a character that the vocabulary cannot spell is refused.
        self._of_nanochat = config.stop_ids is None
        bounded = texts.spells_all and keeps_whole_text(tokenizer)
        self._longest_token_bytes = texts.longest if bounded else None
        self._eos_id = ends.eos_id
        self.bos_id = ends.bos_id
        self.prepend_bos = ends.prepend_bos
        self.stop_ids = ends.stop_ids
        self.special_ids = specials
        self.tool_ids = tool_ids_of(specials, self.encode)
        self.chat = self._chat_template(config)

    @classmethod
    def from_json(cls, data: bytes, vocab_size: int, config: HuggingFaceConfig = _NO_CONFIG) -> HuggingFaceTokenizer:
        """From the bytes of `tokenizer.json`. Raises ValueError, with the reason, if it cannot be used."""
        try:
            with library_errors():
                tokenizer = tokenizers.Tokenizer.from_str(data.decode())
                specials = _special_names(tokenizer, config)
                vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
                _encode_plainly(tokenizer)
        except LibraryError as error:
            raise ValueError(f"the tokenizers library cannot read it: {error}") from error
        _check_declared(config, vocabulary)
        if max(vocabulary.values(), default=0) >= vocab_size:
            raise ValueError(
                f"it has {max(vocabulary.values()) + 1} ids and the model has {vocab_size}: it belongs to another model"
            )
        special_ids = {name: vocabulary[name] for name in specials if name in vocabulary}
        if config.stop_ids is None:
            ends = Ends.by_name(config, vocabulary, special_ids)
        else:
            ends = Ends.by_files(config, vocabulary, state_of(tokenizer.post_processor))
        if ends.bos_id is not None and ends.bos_id >= vocab_size:
            raise ValueError(f"it puts the id {ends.bos_id} before a text, and the model has {vocab_size} ids")
        return cls(tokenizer, TokenTexts.of(tokenizer, vocabulary, special_ids), special_ids, ends, config)

    def encode(self, text: str) -> Encoding:
        """See `Tokenizer`. What the vocabulary cannot spell is refused in nanochat's folders only.

        In others it is treated as the library does: it becomes the token for unknown text, or nothing.
        """
        unknown = self._unknown(text)
        return Encoding(self._ids(text), skipped=unknown)

    def _chat_template(self, config: HuggingFaceConfig) -> ChatTemplate | None:
        if config.chat_template is None:
            return NanochatTemplate.of(self.special_ids, lambda text: self.encode(text).ids)
        aliases = SpecialAliases(self._tokenizer, self.special_ids)

        def encode(parts: Iterable[tuple[bool, str]]) -> tuple[int, ...]:
            listed = list(parts)
            # Only to refuse characters; the parts are encoded together.
            self._unknown("".join(text for is_special, text in listed if not is_special))
            return aliases.real(self._ids(aliases.text(listed)))

        return JinjaTemplate(config.chat_template, config.variables, self.special_ids, encode)

    def _unknown(self, text: str) -> tuple[str, ...]:
        """The characters that the vocabulary cannot spell, in the order of their first appearance.

        Raises UnknownCharacterError for a lone surrogate, and in nanochat's folders for the first one of them.
        """
        refuse_surrogates(text)
        unknown = self._not_spelled(text)
        if unknown and self._of_nanochat:
            raise UnknownCharacterError(text.index(unknown[0]), unknown[0])
        return unknown

    def _ids(self, text: str) -> tuple[int, ...]:
        try:
            with library_errors():
                return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except LibraryError as error:
            raise TokenizerFailedError(str(error)) from error

    def _not_spelled(self, text: str) -> tuple[str, ...]:
        missing = self._texts.missing_bytes
        if missing is None:
            found = ((character, self._ids(character)) for character in dict.fromkeys(text))
            return tuple(one for one, ids in found if not ids or self._texts.unknown_id in ids)
        if missing.isdisjoint(text.encode()):
            return ()
        return tuple(one for one in dict.fromkeys(text) if not missing.isdisjoint(one.encode()))

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `Tokenizer`."""
        return self._texts.bytes_of.get(token_id)

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """See `Tokenizer`."""
        if self._texts.spelling.byte_level:
            return BytesDecoder(self.token_bytes, prompt, completes=not self._of_nanochat)
        return TokenDecoder(self._texts, prompt)

    def card(self) -> TokenizerCard:
        """See `Tokenizer`."""
        return TokenizerCard(
            kind=self.kind,
            text_ids=len(self._texts.bytes_of),
            longest_token_bytes=self._longest_token_bytes,
            bos_id=self.bos_id,
            prepend_bos=self.prepend_bos,
            chat=None if self.chat is None else self.chat.kind,
            calculator=self.tool_ids is not None,
            eos_id=self._eos_id,
        )

    def to_huggingface(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        content: dict[str, Any] = json.loads(self._tokenizer.to_str())
        real = [
            # Those that only the configuration calls special are not in the file.
            {**token, "special": token["content"] in self.special_ids}
            for token in content["added_tokens"]
            if not is_alias(token["content"])
        ]
        # BOS is added elsewhere, and the other post-processors only change what is known of each token's place.
        return {**content, "added_tokens": real, "post_processor": None}


def _special_names(tokenizer: tokenizers.Tokenizer, config: HuggingFaceConfig) -> list[str]:
    """The names of the special tokens. As in transformers, they are those of the configuration, too.

    Tokens that only the configuration has are added.
    """
    known: list[str] = []
    if config.stop_ids is not None:
        missing = [token for token in config.declared if tokenizer.token_to_id(token.name) is None]
        tokenizer.add_tokens(
            [tokenizers.AddedToken(token.name, special=token.special, normalized=False) for token in missing]
        )
        declared = [token.name for token in config.declared if token.special]
        known = [name for name in (*declared, *config.special_names) if tokenizer.token_to_id(name) is not None]
        # Those that it has already are not added again, but are special from then on.
        tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in known])
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    return [*dict.fromkeys([*added, *known])]


def _check_declared(config: HuggingFaceConfig, vocabulary: Mapping[str, int]) -> None:
    """Raise ValueError if the configuration contradicts `tokenizer.json`."""
    for token in config.declared if config.stop_ids is not None else ():
        if (found := vocabulary.get(token.name)) != token.token_id:
            raise ValueError(
                f"its id of {token.name!r} is {found}, and {CONFIG_NAME} says {token.token_id}: they belong to "
                "different tokenizers"
            )


def _encode_plainly(tokenizer: tokenizers.Tokenizer) -> None:
    """Turn off settings that training scripts may leave in the file, and that would change a prompt."""
    # The name of a special token in a prompt is ordinary text. BOS is added elsewhere.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, tokenizers.models.BPE):
        tokenizer.model.dropout = None
