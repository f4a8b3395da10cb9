"""Tokenizers of checkpoints, as their workers publish them.

The API has no checkpoints. It loads a tokenizer when a request first needs it, and keeps few of them.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from tasks.card import Card
from tasks.library_errors import LibraryError, library_errors
from tasks.machine_memory import return_free_memory
from tasks.shared_call import SharedCall

if TYPE_CHECKING:
    import tokenizers

log = structlog.get_logger(__name__)

#: How many tokenizers a process keeps: those that were used last.
KEPT = 4
#: The largest tokenizer that is loaded, in bytes. One with 260,000 tokens has 50 million.
MAX_BYTES = 256 << 20
#: The longest text that is encoded, in characters. No context is as long.
MAX_CHARACTERS = 4_000_000


#: What a content that no worker published may raise, beside ValueError.
_DAMAGES = (AttributeError, KeyError, LibraryError, MemoryError, OSError, RecursionError, TypeError)


class EncodingFailedError(Exception):
    """The tokenizer's library cannot encode a text. It fails again with the same text."""


class ServedTokenizer:
    """The tokenizer of a checkpoint. It can be used by several threads."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        config: Mapping[str, Any],
        texts: Sequence[bytes | None],
        special_ids: Mapping[str, int],
        *,
        add_bos: bool,
    ) -> None:
        """`texts`: the bytes of each id. `add_bos`: whether a prompt begins with BOS."""
        self._tokenizer = tokenizer
        self._texts = texts
        self._names = {token_id: name for name, token_id in special_ids.items()}
        # Whether special tokens are parsed is a state of the library's object.
        self._lock = threading.Lock()
        #: The content of `tokenizer_config.json`.
        self.config = config
        self.bos_id = self._id_of("bos_token", special_ids)
        self.eos_id = self._id_of("eos_token", special_ids)
        self._bos = () if self.bos_id is None or not add_bos else (self.bos_id,)

    @classmethod
    def from_blob(cls, blob: bytes) -> ServedTokenizer:
        """The tokenizer that a worker published. Raises ValueError for anything else."""
        # Not at the top: the library needs memory that most processes never use.
        import tokenizers

        try:
            content = json.loads(_unpacked(blob), parse_constant=_refuse_constant)
            with library_errors():
                tokenizer = tokenizers.Tokenizer.from_str(content["tokenizer"])
            texts = [None if text is None else base64.b64decode(text, validate=True) for text in content["token_bytes"]]
            config, special_ids, add_bos = content["config"], content["special"], content["add_bos"]
            if not isinstance(config, dict) or not isinstance(add_bos, bool):
                raise TypeError("wrong types")
            if not isinstance(config.get("tokenizer_class"), str | None):
                raise TypeError("a class without a name")
            if not all(isinstance(token_id, int) for token_id in special_ids.values()):
                raise TypeError("special tokens without ids")
            found = cls(tokenizer, config, texts, special_ids, add_bos=add_bos)
        except _DAMAGES as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        # Of a tokenizer with 150,000 tokens, 60 MB stay, and 100 more were needed to load it.
        del content, texts
        return_free_memory()
        return found

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The ids of a text: with BOS, if the checkpoint's prompts begin with it and `add_special` is true.

        `parse_special`: whether names of special tokens are special tokens, and not text. Raises EncodingFailedError.
        """
        if len(text) > MAX_CHARACTERS:
            raise EncodingFailedError(f"The text has more than {MAX_CHARACTERS:,} characters.")
        try:
            with self._lock, library_errors():
                self._tokenizer.encode_special_tokens = not parse_special
                ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except LibraryError as error:
            raise EncodingFailedError(f"This checkpoint's tokenizer failed on the text ({error}).") from error
        return [*(self._bos if add_special else ()), *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, in which special tokens are their names. Bytes that are no UTF-8 become U+FFFD."""
        known = [token_id for token_id in ids if 0 <= token_id < len(self._texts)]
        text: str = self._tokenizer.decode(known, skip_special_tokens=False)
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of an id, which may be a part of a character. None if it has no text: it is special, or unused."""
        return self._texts[token_id] if 0 <= token_id < len(self._texts) else None

    def first_bytes(self, token_id: int) -> bytes | None:
        """As `token_bytes`, for the first token of a text: some tokenizers remove a space from the beginning."""
        raw = self.token_bytes(token_id)
        if raw is None or not _is_utf8(raw):
            return raw
        text: str = self._tokenizer.decode([token_id])
        return text.encode()

    def name(self, token_id: int) -> str:
        """The name of a special token, or else the text of an id."""
        name = self._names.get(token_id)
        if name is not None:
            return name
        text = self.token_bytes(token_id)
        return f"token_id:{token_id}" if text is None else text.decode("utf-8", "replace")

    def _id_of(self, field: str, special_ids: Mapping[str, int]) -> int | None:
        name = self.config.get(field)
        return special_ids.get(name) if isinstance(name, str) else None


class ServedTokenizers:
    """The tokenizers of all checkpoints. Use it on one event loop."""

    def __init__(self, read: Callable[[str], Awaitable[bytes | None]], *, kept: int = KEPT) -> None:
        """`read`: what the workers of the card with this digest published; None if they did not."""
        self._read = read
        self._kept = kept
        self._loaded: OrderedDict[str, ServedTokenizer] = OrderedDict()
        self._loads: dict[str, SharedCall[ServedTokenizer | None]] = {}

    async def get(self, card: Card) -> ServedTokenizer | None:
        """The tokenizer of a checkpoint. None if it has none, or none was published, or it is damaged.

        Raises what `read` raises, such as RedisError.
        """
        digest = card.digest
        if card.tokenizer.kind == "none":
            return None
        if (found := self._loaded.get(digest)) is not None:
            self._loaded.move_to_end(digest)
            return found
        load = self._loads.setdefault(digest, SharedCall(lambda: self._load(digest)))
        try:
            return await load()
        finally:
            self._loads.pop(digest, None)

    async def _load(self, digest: str) -> ServedTokenizer | None:
        blob = await self._read(digest)
        if blob is None:
            return None
        try:
            tokenizer = await asyncio.to_thread(ServedTokenizer.from_blob, blob)
        except ValueError as error:
            log.error("tokenizer_damaged", digest=digest, error=str(error)[:200])
            return None
        self._loaded[digest] = tokenizer
        while len(self._loaded) > self._kept:
            self._loaded.popitem(last=False)
        return tokenizer


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unpacked(blob: bytes) -> bytes:
    """Raises OSError or ValueError."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(blob)) as file:
            content = file.read(MAX_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"not a complete file: {error}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    return content
