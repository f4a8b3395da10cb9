"""Tokenizers for other programs: a folder in the format of Hugging Face, and a blob for the API."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.checkpoints.tokenizers.base import Tokenizer
from worker.checkpoints.tokenizers.huggingface_config import CONFIG_NAME, TEMPLATE_NAME
from worker.checkpoints.tokenizers.huggingface_json import with_bos

TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTokenizer:
    """The content of both files of a folder."""

    #: `tokenizer.json`: it puts BOS before a text where the checkpoint needs it.
    tokenizer: dict[str, Any]
    #: `tokenizer_config.json`.
    config: dict[str, Any]

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, context: int) -> ExportedTokenizer:
        """The export of a tokenizer. `context`: the longest sequence of the model, in tokens."""
        names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
        content = tokenizer.to_huggingface()
        if tokenizer.prepend_bos and tokenizer.bos_id is not None:
            content = with_bos(content, names[tokenizer.bos_id], tokenizer.bos_id)
        eos_id = tokenizer.card().eos_id
        bos, eos = (None if one is None else names.get(one) for one in (tokenizer.bos_id, eos_id))
        chat = tokenizer.chat
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": eos or bos,
            **({} if chat is None else chat.variables),
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            **({} if chat is None else {"chat_template": chat.source}),
        }
        return cls(tokenizer=content, config=config)

    def write(self, folder: Path) -> None:
        """Write the files, and replace those that are there. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_NAME).write_text(json.dumps(self.tokenizer, ensure_ascii=False), encoding="utf-8")
        (folder / CONFIG_NAME).write_text(
            json.dumps(self.config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        # The template of another tokenizer: it would be used instead of the one in the configuration.
        (folder / TEMPLATE_NAME).unlink(missing_ok=True)


def served_blob(tokenizer: Tokenizer, *, vocab_size: int, context: int) -> bytes:
    """The tokenizer for the API, which reads it with `api.jobs.tokenizers`: compressed JSON."""
    exported = ExportedTokenizer.of(tokenizer, context=context)
    texts = (tokenizer.token_bytes(token_id) for token_id in range(vocab_size))
    content = {
        # A text in the text: the API hands it to the library without making objects of it.
        "tokenizer": json.dumps(exported.tokenizer, ensure_ascii=False, separators=(",", ":")),
        "config": exported.config,
        "token_bytes": [None if text is None else base64.b64encode(text).decode() for text in texts],
        "special": dict(tokenizer.special_ids),
        "add_bos": tokenizer.prepend_bos,
    }
    # The fastest level gives nearly the size of the others. Without the time of day, equal tokenizers give equal blobs.
    return gzip.compress(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(), 1, mtime=0)
