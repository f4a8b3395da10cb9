"""The part of a tokenizer that the engine needs: the bytes of the ids that have text, and the ids that end a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: Drawn instead of an id if a row's logits are not finite.
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids 0 to `size - 1`. Plain data, built by the owner of the tokenizer.

    Raises ValueError if its fields contradict each other.
    """

    size: int
    #: Bytes of each id; None for ids without text (special ids, padding).
    text: tuple[bytes | None, ...]
    #: Ids with which the model ends a text.
    stop_ids: frozenset[int] = frozenset()
    #: Ids with which the model uses a tool. They have no text, and only requests with `tools` sample them.
    tool_ids: frozenset[int] = frozenset()
    #: Ids whose text contains a newline.
    newline_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.text) != self.size:
            raise ValueError(f"the vocabulary has {self.size} ids but texts for {len(self.text)}")
        if not all(0 <= token < self.size for token in self.stop_ids):
            raise ValueError(f"stop ids {sorted(self.stop_ids)} are not all between 0 and {self.size - 1}")
        if not all(0 <= token < self.size for token in self.tool_ids):
            raise ValueError(f"tool ids {sorted(self.tool_ids)} are not all between 0 and {self.size - 1}")
        newlines = frozenset(token for token, text in enumerate(self.text) if text is not None and b"\n" in text)
        object.__setattr__(self, "newline_ids", newlines)

    @classmethod
    def without_text(cls, size: int) -> Vocabulary:
        """A vocabulary for decoding bare ids: no id has text and no id ends one, so requests must set `every_id`."""
        return cls(size, (None,) * size)

    def candidates(self, *, every_id: bool, ignore_eos: bool) -> tuple[bool, ...]:
        """Whether each id may be sampled: ids with text and, unless `ignore_eos`, stop ids; or all with `every_id`."""
        if every_id:
            return (True,) * self.size
        return tuple(
            (not ignore_eos) if token in self.stop_ids else text is not None for token, text in enumerate(self.text)
        )

    def spell(self, tokens: Iterable[int]) -> bytes:
        """The bytes of `tokens`, joined; ids without text add none."""
        return b"".join(self.text[token] or b"" for token in tokens)
