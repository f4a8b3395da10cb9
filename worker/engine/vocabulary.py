"""What the engine knows of a tokenizer: which ids have text, which bytes it is, and which ids end the text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: Drawn instead of an id where a row of logits is not finite.
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids 0 to `size - 1`. Plain data; whoever has the tokenizer builds it."""

    size: int
    #: Bytes of each id; None where an id stands for no text (specials, padding).
    text: tuple[bytes | None, ...]
    #: Ids at which the model ends the text.
    stop_ids: frozenset[int] = frozenset()
    #: Ids whose text has a newline.
    newline_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.text) != self.size:
            raise ValueError(f"the vocabulary has {self.size} ids but texts for {len(self.text)}")
        if not all(0 <= token < self.size for token in self.stop_ids):
            raise ValueError(f"stop ids {sorted(self.stop_ids)} are not all within 0 to {self.size - 1}")
        newlines = frozenset(token for token, text in enumerate(self.text) if text is not None and b"\n" in text)
        object.__setattr__(self, "newline_ids", newlines)

    @classmethod
    def without_text(cls, size: int) -> Vocabulary:
        """For decoding bare ids: nothing has text, nothing ends it, so requests must sample over every id."""
        return cls(size, (None,) * size)

    def candidates(self, *, every_id: bool, ignore_eos: bool) -> tuple[bool, ...]:
        """For each id whether it may be sampled: ids with text and, unless `ignore_eos`, those that end it; or all."""
        if every_id:
            return (True,) * self.size
        return tuple(
            (not ignore_eos) if token in self.stop_ids else text is not None for token, text in enumerate(self.text)
        )

    def spell(self, tokens: Iterable[int]) -> bytes:
        """The bytes of `tokens` in a row; ids without text have none."""
        return b"".join(self.text[token] or b"" for token in tokens)
