"""Decoders of one answer, token by token.

All pieces together are what the library's decoder gives for prompt and answer together, without the prompt. So a
decoder must know the prompt: a space that is removed from the beginning of a text stays at the beginning of an answer,
and an answer may complete a character that the prompt began.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from itertools import takewhile

from worker.checkpoints.tokenizers.huggingface_text import TokenTexts

#: Bytes before the end of a text that decide whether it ends inside a character, which has at most four bytes.
_CONTEXT_BYTES = 3


class BytesDecoder:
    """Decodes tokens that represent bytes of UTF-8."""

    def __init__(
        self, token_bytes: Callable[[int], bytes | None], prompt: Sequence[int] = (), *, completes: bool = False
    ) -> None:
        """`completes`: whether a part of a character at the end of an answer becomes U+FFFD, or is left out."""
        self._token_bytes = token_bytes
        self._completes = completes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._utf8.decode(self._end_of(prompt))

    def push(self, token_id: int) -> str:
        """See `Decoder`."""
        return self._utf8.decode(self._token_bytes(token_id) or b"")

    def finish(self) -> str:
        """See `Decoder`."""
        return self._utf8.decode(b"", final=True) if self._completes else ""

    def _end_of(self, prompt: Sequence[int]) -> bytes:
        end = b""
        for token_id in reversed(prompt):
            if len(end) >= _CONTEXT_BYTES:
                break
            end = (self._token_bytes(token_id) or b"") + end
        return end


class TokenDecoder:
    """Decodes tokens that are whole characters, or single bytes, in a vocabulary in the style of SentencePiece.

    The library decodes bytes that follow each other together: one that does not belong to a character makes all of them
    U+FFFD. So nothing is known of the first byte before the last one has come.
    """

    def __init__(self, texts: TokenTexts, prompt: Sequence[int] = ()) -> None:
        self._texts = texts
        self._spelling = texts.spelling
        #: Bytes that follow each other, up to the present end, and how many of them belong to the prompt.
        self._run = bytearray()
        self._given = 0
        #: Whether no text has come yet.
        self._first = True
        #: How many more characters may be removed from the beginning of the text.
        self._to_strip = texts.spelling.stripped.most
        self._read(prompt)

    def push(self, token_id: int) -> str:
        """See `Decoder`."""
        text = self._texts.bytes_of.get(token_id)
        if text is None:
            return ""
        if token_id in self._texts.byte_ids:
            self._run += text
            return ""
        before = self._end_run()
        if self._first:
            text = self._texts.first_bytes.get(token_id, text)
        self._first = False
        return self._stripped(before + text.decode())

    def finish(self) -> str:
        """See `Decoder`."""
        return self._stripped(self._end_run())

    def _read(self, prompt: Sequence[int]) -> None:
        """Skip the prompt. Only its beginning and its end make a difference to what follows."""
        end = list(takewhile(self._may_be_in_run, reversed(prompt)))
        for token_id in prompt[: len(prompt) - len(end)]:
            self.push(token_id)
            if not self._first and not self._to_strip:
                break
        for token_id in reversed(end):
            self.push(token_id)
        self._given = len(self._run)

    def _may_be_in_run(self, token_id: int) -> bool:
        return token_id in self._texts.byte_ids or token_id not in self._texts.bytes_of

    def _end_run(self) -> str:
        """The text of the bytes that have come, without that of the prompt."""
        if not self._run:
            return ""
        run, given, first = bytes(self._run), self._given, self._first
        self._run.clear()
        self._given, self._first = 0, False
        try:
            text = run.decode()
        except UnicodeDecodeError:
            text, before = "\ufffd" * len(run), "\ufffd" * given
        else:
            before = run[:given].decode(errors="ignore")
        text, before = (self._spelling.text_of_bytes(one, first=first) for one in (text, before))
        self._stripped(before)
        return text[len(before) :]

    def _stripped(self, text: str) -> str:
        """`text`, without what is removed from the beginning of the whole text."""
        while self._to_strip and text:
            if text[0] != self._spelling.stripped.character:
                self._to_strip = 0
                break
            self._to_strip -= 1
            text = text[1:]
        return text
