"""Finds and loads the tokenizer of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from worker.checkpoints import meta
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.json_file import read_object
from worker.checkpoints.tokenizers.base import Tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import GUIDE_VOCAB_SIZE, CharacterTokenizer
from worker.checkpoints.tokenizers.huggingface import CONFIG_NAME, HuggingFaceTokenizer

_CHARACTERS, _PICKLE, _HUGGING_FACE = CONFIG_NAME, "tokenizer.pkl", "tokenizer.json"


def tokenizer_file(folder: CheckpointFolder) -> Path | None:
    """The file of a checkpoint's tokenizer, None if there is none. Raises TokenizerError.

    Three folders are searched: that of the weights; `tokenizer/` in it; and the one that nanochat uses, `tokenizer/`
    beside the folder of all runs. A `tokenizer_config.json` without `vocab_chars` belongs to a Hugging Face tokenizer.
    """
    without_characters = None
    for place in (folder.path, folder.path / "tokenizer", folder.path.parent.parent / "tokenizer"):
        characters = place / _CHARACTERS
        has_characters = characters.is_file() and "vocab_chars" in read_object(characters, TokenizerError)
        for file in (characters if has_characters else None, place / _PICKLE, place / _HUGGING_FACE):
            if file is not None and file.is_file():
                return file
        if characters.is_file():
            without_characters = without_characters or characters
    if without_characters is not None:
        raise TokenizerError(without_characters, "has no `vocab_chars`, the vocabulary's characters in id order")
    return None


def check_tokenizer(folder: CheckpointFolder) -> None:
    """Raise TokenizerError if a checkpoint has no tokenizer that can be used, or CheckpointError for its meta file."""
    load_tokenizer(folder, meta.read(folder.meta_file).sizes["vocab_size"])


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
            return CharacterTokenizer.from_config(read_object(file, TokenizerError), vocab_size)
        if file.name == _PICKLE:
            return BpeTokenizer.from_pickle(file.read_bytes(), vocab_size)
        return HuggingFaceTokenizer.from_json(file.read_bytes(), vocab_size, eos_token=_eos_token(file))
    except OSError as error:
        raise TokenizerError(file, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TokenizerError(file, str(error)) from error


def _eos_token(file: Path) -> str | None:
    """The `eos_token` in the `tokenizer_config.json` beside a `tokenizer.json`: text, or an object with `content`."""
    config = file.with_name(CONFIG_NAME)
    token = read_object(config, TokenizerError).get("eos_token") if config.is_file() else None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
