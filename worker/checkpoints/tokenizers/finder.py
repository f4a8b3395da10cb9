"""Which tokenizer goes with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers.base import Tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import GUIDE_VOCAB_SIZE, CharacterTokenizer
from worker.checkpoints.tokenizers.huggingface import CONFIG_NAME, HuggingFaceTokenizer

_CHARACTERS, _PICKLE, _HUGGING_FACE = CONFIG_NAME, "tokenizer.pkl", "tokenizer.json"


def tokenizer_file(folder: CheckpointFolder) -> Path | None:
    """The file of the checkpoint's tokenizer, None where there is none. Raises TokenizerError.

    It lies beside the weights, in `tokenizer/` beside them, or where nanochat keeps it: `tokenizer/` beside the folder
    of all runs. Hugging Face's own `tokenizer_config.json` has no `vocab_chars`; it names the `eos_token`.
    """
    without_characters = None
    for place in (folder.path, folder.path / "tokenizer", folder.path.parent.parent / "tokenizer"):
        characters = place / _CHARACTERS
        has_characters = characters.is_file() and "vocab_chars" in _json(characters)
        for file in (characters if has_characters else None, place / _PICKLE, place / _HUGGING_FACE):
            if file is not None and file.is_file():
                return file
        if characters.is_file():
            without_characters = without_characters or characters
    if without_characters is not None:
        raise TokenizerError(without_characters, "has no `vocab_chars`, the vocabulary's characters in id order")
    return None


def load_tokenizer(folder: CheckpointFolder, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint with `vocab_size` ids. Raises TokenizerError."""
    file = tokenizer_file(folder)
    if file is None:
        if vocab_size == GUIDE_VOCAB_SIZE:
            return CharacterTokenizer.guide()
        raise TokenizerError(
            folder.path,
            f"no tokenizer: neither {_CHARACTERS} with vocab_chars, nor {_PICKLE}, nor {_HUGGING_FACE} is here, in "
            "tokenizer/, or in tokenizer/ beside the folder of all runs. Copy the one that the model was trained with",
        )
    try:
        if file.name == _CHARACTERS:
            return CharacterTokenizer.from_config(_json(file), vocab_size)
        if file.name == _PICKLE:
            return BpeTokenizer.from_pickle(file.read_bytes(), vocab_size)
        return HuggingFaceTokenizer.from_json(file.read_bytes(), vocab_size, eos_token=_eos_token(file))
    except OSError as error:
        raise TokenizerError(file, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TokenizerError(file, str(error)) from error


def _eos_token(file: Path) -> str | None:
    """What the `tokenizer_config.json` beside a `tokenizer.json` names: a text, or an object with its `content`."""
    config = file.with_name(CONFIG_NAME)
    token = _json(config).get("eos_token") if config.is_file() else None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(file, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(file, f"is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(file, "is no JSON object")
    return content
