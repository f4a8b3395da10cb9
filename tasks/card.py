"""A checkpoint's card: what the workers that serve it publish, and all that the API knows of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCard:
    """What a front end needs to know of a tokenizer without having it."""

    #: `characters`, `tiktoken`, `huggingface`, or `none` (token ids only).
    kind: str
    #: Ids that stand for text.
    text_ids: int
    #: The characters in id order, where the vocabulary is a list of characters, else None.
    characters: str | None = None
    #: What happens to a character that is not in `characters`.
    unknown: Literal["refuse", "skip"] = "refuse"
    bos_id: int | None = None
    #: Whether BOS is put in front of every prompt.
    prepend_bos: bool = False

    def unknown_characters(self, prompt: str) -> list[tuple[int, str]]:
        """(index, character) of each character of `prompt` that the vocabulary lacks; empty where it is not a list."""
        if self.characters is None:
            return []
        known = frozenset(self.characters)
        return [(index, char) for index, char in enumerate(prompt) if char not in known]

    def prompt_tokens(self, prompt: str) -> int | None:
        """Exact length of `prompt` in tokens, BOS included; None where only the tokenizer can tell."""
        if self.characters is None:
            return None
        return len(prompt) - len(self.unknown_characters(prompt)) + self.prepend_bos


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a checkpoint is. Equal weights in equal form, configuration and tokenizer give an equal `digest`."""

    name: str
    #: SHA-256 (hex) over the checksums in the weights file, the model configuration, the tokenizer, and the form below.
    digest: str
    step: int | None
    #: Last evaluation as the trainer wrote it; None where it wrote none, or one that is not finite.
    loss: float | None
    #: `val_loss` (nats per token), `val_bpb` (bits per byte), or None.
    loss_name: str | None
    #: Architecture era, `E1a` to `E7`.
    era: str
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    vocab_size: int
    #: The longest sequence, prompt and answer together, in tokens.
    context: int
    softcap: float
    parameters: int
    #: Bytes of the weights as they lie on disk.
    weight_bytes: int
    #: How a worker holds them: as they are, or rounded to int8.
    weights: Literal["exact", "int8"] = "exact"
    #: Bytes of keys and values that one token of one sequence holds in memory, on this worker's device.
    kv_bytes_per_token: int
    tokenizer: TokenizerCard

    def to_json(self) -> str:
        """The card as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Card:
        """The card that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["tokenizer"] = TokenizerCard(**fields["tokenizer"])
        return cls(**fields)
