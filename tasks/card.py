"""The card of a checkpoint: its workers publish it, and it is all that the API needs to know about the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

#: The number format of stored weights.
StoredType = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCard:
    """The part of a tokenizer's description that the API needs. The API does not have the tokenizer itself."""

    #: `characters`, `tiktoken`, `huggingface`, or `none` (token ids only).
    kind: str
    #: Number of ids that have text.
    text_ids: int
    #: The characters in the order of their ids, if the vocabulary is a list of characters; else None.
    characters: str | None = None
    #: How a character that is not in `characters` is treated: the prompt is refused, or the character is skipped.
    unknown: Literal["refuse", "skip"] = "refuse"
    #: UTF-8 bytes of the longest token, if every byte of a prompt becomes part of a token; else None: a prompt of any
    #: length may have few tokens.
    longest_token_bytes: int | None = None
    bos_id: int | None = None
    #: Whether BOS is put before every prompt.
    prepend_bos: bool = False
    #: How messages become a prompt: in nanochat's layout, or by the checkpoint's Jinja template. None: not at all.
    chat: Literal["nanochat", "jinja"] | None = None
    #: Whether the vocabulary has the four special tokens with which nanochat's models use a calculator.
    calculator: bool = False
    #: The id that ends an answer; None if no special token does.
    eos_id: int | None = None

    def unknown_characters(self, prompt: str) -> list[tuple[int, str]]:
        """(index, character) of each character of `prompt` that is not in `characters`; empty if that is None."""
        if self.characters is None:
            return []
        known = frozenset(self.characters)
        return [(index, char) for index, char in enumerate(prompt) if char not in known]

    def prompt_tokens(self, prompt: str) -> int | None:
        """Exact length of `prompt` in tokens, including BOS; None if `characters` is None."""
        if self.characters is None:
            return None
        return len(prompt) - len(self.unknown_characters(prompt)) + self.prepend_bos

    def least_prompt_tokens(self, prompt: str) -> int:
        """A lower bound of the length of `prompt` in tokens, including BOS; 0 if none is known."""
        if self.longest_token_bytes is None:
            return 0
        # A lone surrogate, which no tokenizer takes, must not raise here.
        return -(-len(prompt.encode("utf-8", "replace")) // self.longest_token_bytes) + self.prepend_bos


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Describes a checkpoint. Equal weights, form, configuration and tokenizer give an equal `digest`."""

    name: str
    #: SHA-256 (hex) over what identifies the weights, the configuration, the tokenizer, and `weights` below.
    digest: str
    step: int | None
    #: Last evaluation that the trainer wrote; None if it wrote none, or if the value is not finite.
    loss: float | None
    #: `val_loss` (nats per token), `val_bpb` (bits per byte), or None.
    loss_name: str | None
    #: The architecture: `nanochat`, or the `model_type` of a Hugging Face folder, such as `llama`.
    family: str = "nanochat"
    #: Architecture era of nanochat's own files, `E1a` to `E7`; empty for other folders.
    era: str
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    vocab_size: int
    #: Longest sequence in tokens, prompt and answer together.
    context: int
    #: Logits are `softcap * tanh(raw / softcap)`; None: they are not capped.
    softcap: float | None
    parameters: int
    #: Size of the weights on disk in bytes.
    weight_bytes: int
    #: The number format in which most of the weights are stored.
    dtype: StoredType = "fp32"
    #: Form in which a worker holds the weights: unchanged, or rounded to bf16 or to int8.
    weights: Literal["exact", "bf16", "int8"] = "exact"
    #: How a worker multiplies: with the numbers as they are, or with activations that are rounded for faster
    #: instructions.
    compute: Literal["exact", "fast"] = "exact"
    #: Sampling that the checkpoint's authors recommend, by the names of the API. It applies on OpenAI's routes, where a
    #: request does not say otherwise. None: they recommend none.
    default_sampling: Mapping[str, float] | None = None
    #: The name of its run, if this is the last step of a run that has several: a request for that name gets this
    #: checkpoint. Empty for others.
    latest_of: str = ""
    #: Memory for the keys and values of one token in bytes, on the device of the worker that published the card.
    kv_bytes_per_token: int
    tokenizer: TokenizerCard

    def to_json(self) -> str:
        """The card as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Card:
        """The card that `to_json` encoded. Raises ValueError for anything else.

        Fields that this version does not know, from a process of a newer version, are left out.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            tokenizer = TokenizerCard(**_known(TokenizerCard, raw["tokenizer"]))
            return cls(**{**_known(cls, raw), "tokenizer": tokenizer})
        except (AttributeError, KeyError, RecursionError, TypeError) as error:
            raise ValueError("not a card") from error


def _known(kind: type[Card] | type[TokenizerCard], raw: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}
