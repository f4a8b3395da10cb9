"""Hugging Face's `tokenizer.json`, the file format of the `tokenizers` library.

Source: https://github.com/huggingface/tokenizers
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import tokenizers

from tasks.card import TokenizerCard
from tasks.library_errors import LibraryError, library_errors
from worker.checkpoints.chat import ChatTemplate
from worker.checkpoints.chat.jinja import JinjaTemplate
from worker.checkpoints.chat.nanochat import NanochatTemplate
from worker.checkpoints.tokenizers.base import (
    BOS_TOKEN,
    STOP_TOKENS,
    BytesDecoder,
    Encoding,
    TokenizerFailedError,
    UnknownCharacterError,
    eos_id_of,
    refuse_surrogates,
    tool_ids_of,
)
from worker.checkpoints.tokenizers.huggingface_config import CONFIG_NAME, HuggingFaceConfig
from worker.checkpoints.tokenizers.special_aliases import SpecialAliases, is_alias
from worker.checkpoints.tokenizers.spelling import Spelling

_BOS_TOKENS = (BOS_TOKEN, "<s>", "<bos>")
#: For a tokenizer without files beside it.
_NO_CONFIG = HuggingFaceConfig()


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library in which each token has a text that does not depend on its neighbours."""

    kind = "huggingface"

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        text_ids: dict[int, bytes],
        specials: dict[str, int],
        *,
        config: HuggingFaceConfig,
        unknown_id: int | None,
        spells_all: bool,
        keeps_whole_text: bool,
    ) -> None:
        """`unknown_id` is the id for what the vocabulary cannot spell. If it is None, the library leaves that out.
        `spells_all`: the vocabulary can spell every text. `keeps_whole_text`: see `_keeps_whole_text`."""
        self._tokenizer = tokenizer
        self._text = text_ids
        self._unknown_id = unknown_id
        self._spells_all = spells_all
        bounded = spells_all and keeps_whole_text
        self._longest_token_bytes = max(map(len, text_ids.values())) if bounded else None
        self.bos_id = next((specials[name] for name in _BOS_TOKENS if name in specials), None)
        self.prepend_bos = self.bos_id is not None
        self.special_ids = specials
        self.tool_ids = tool_ids_of(specials, self.encode)
        named = (specials.get(name) for name in STOP_TOKENS)
        eos_id = None if config.eos_token is None else tokenizer.token_to_id(config.eos_token)
        self.stop_ids = frozenset(i for i in (*named, self.bos_id, eos_id) if i is not None)
        self._eos_id = eos_id_of(specials) if eos_id is None else eos_id
        self.chat = self._chat_template(config)

    @classmethod
    def from_json(cls, data: bytes, vocab_size: int, config: HuggingFaceConfig = _NO_CONFIG) -> HuggingFaceTokenizer:
        """From the bytes of `tokenizer.json`. Raises ValueError, with the reason, if it cannot be used.

        The `eos_token` of `config` is a token that ends a text, in addition to `STOP_TOKENS`.
        """
        try:
            with library_errors():
                tokenizer = tokenizers.Tokenizer.from_str(data.decode())
                vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
                _encode_plainly(tokenizer)
                added = tokenizer.get_added_tokens_decoder()
        except LibraryError as error:
            raise ValueError(f"the tokenizers library cannot read it: {error}") from error
        content: dict[str, Any] = json.loads(data)
        if max(vocabulary.values(), default=0) >= vocab_size:
            raise ValueError(
                f"it has {max(vocabulary.values()) + 1} ids and the model has {vocab_size}: it belongs to another model"
            )
        if config.eos_token is not None and config.eos_token not in vocabulary:
            raise ValueError(f"the `eos_token` {config.eos_token!r} of {CONFIG_NAME} is not in it")
        spelling = Spelling.of(content.get("decoder"))
        specials = {token.content: i for i, token in added.items() if token.special}
        unknown_id = _unknown_id(content["model"], vocabulary)
        text_ids = {
            i: spelling.bytes_of(name) for name, i in vocabulary.items() if name not in specials and i != unknown_id
        }
        return cls(
            tokenizer,
            text_ids,
            specials,
            config=config,
            unknown_id=unknown_id,
            spells_all=all(name in vocabulary for name in spelling.names_of_bytes()),
            keeps_whole_text=_keeps_whole_text(content),
        )

    def encode(self, text: str) -> Encoding:
        """See `Tokenizer`."""
        self._check(text)
        return Encoding(self._ids(text))

    def _chat_template(self, config: HuggingFaceConfig) -> ChatTemplate | None:
        if config.chat_template is None:
            return NanochatTemplate.of(self.special_ids, lambda text: self.encode(text).ids)
        aliases = SpecialAliases(self._tokenizer, self.special_ids)

        def encode(parts: Iterable[tuple[bool, str]]) -> tuple[int, ...]:
            listed = list(parts)
            # Only to refuse characters; the parts are encoded together.
            self._check("".join(text for is_special, text in listed if not is_special))
            return aliases.real(self._ids(aliases.text(listed)))

        return JinjaTemplate(config.chat_template, config.variables, self.special_ids, encode)

    def _check(self, text: str) -> None:
        """Raise UnknownCharacterError for what the vocabulary cannot spell."""
        refuse_surrogates(text)
        if not self._spells_all:
            self._refuse_unknown(text)

    def _ids(self, text: str) -> tuple[int, ...]:
        try:
            with library_errors():
                return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except LibraryError as error:
            raise TokenizerFailedError(str(error)) from error

    def _refuse_unknown(self, text: str) -> None:
        # In the order of first appearance: the error must name the first unknown character.
        for character in dict.fromkeys(text):
            ids = self._ids(character)
            if not ids or self._unknown_id in ids:
                raise UnknownCharacterError(text.index(character), character)

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `Tokenizer`."""
        return self._text.get(token_id)

    def decoder(self) -> BytesDecoder:
        """See `Tokenizer`."""
        return BytesDecoder(self.token_bytes)

    def card(self) -> TokenizerCard:
        """See `Tokenizer`."""
        return TokenizerCard(
            kind=self.kind,
            text_ids=len(self._text),
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
        real = [token for token in content["added_tokens"] if not is_alias(token["content"])]
        # BOS is added elsewhere, and the other post-processors only change what is known of each token's place.
        return {**content, "added_tokens": real, "post_processor": None}


#: Pre-tokenizers that only divide a text, so that none of it is lost. `Split` is one unless it removes what it matches.
_DIVIDING = ("ByteLevel", "Digits", "Split")


def _keeps_whole_text(content: dict[str, Any]) -> bool:
    """Whether each byte of a text is in one of its tokens.

    Not if a part of the tokenizer may shorten the text: a normalizer, a pre-tokenizer that removes spaces, or an added
    token that takes the spaces beside it.
    """
    divider = content.get("pre_tokenizer")
    parts = [] if divider is None else divider.get("pretokenizers", [divider])
    return (
        content.get("normalizer") is None
        and all(part["type"] in _DIVIDING and part.get("behavior") != "Removed" for part in parts)
        and not any(token.get("lstrip") or token.get("rstrip") for token in content.get("added_tokens") or ())
    )


def _encode_plainly(tokenizer: tokenizers.Tokenizer) -> None:
    """Turn off settings that training scripts may leave in the file, and that would change a prompt."""
    # The name of a special token in a prompt is ordinary text. BOS is added elsewhere.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, tokenizers.models.BPE):
        tokenizer.model.dropout = None


def _unknown_id(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    """The id for what the vocabulary cannot spell. Unigram models store the id, all others the token's name."""
    by_number: int | None = model.get("unk_id")
    name: str | None = model.get("unk_token")
    return by_number if name is None else vocabulary.get(name)
