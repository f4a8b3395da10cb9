"""Finds and loads the tokenizer of a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.json_file import read_object
from worker.checkpoints.regular_file import read_bytes
from worker.checkpoints.sizes import sizes_of
from worker.checkpoints.tokenizers.base import Tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import GUIDE_VOCAB_SIZE, CharacterTokenizer
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer
from worker.checkpoints.tokenizers.huggingface_config import CONFIG_NAME, TEMPLATE_NAME, HuggingFaceConfig

#: The largest tokenizer that is read, in bytes. One with 260,000 tokens has 35 million as JSON.
MAX_TOKENIZER_BYTES = 64 << 20
_CHARACTERS, _PICKLE, _HUGGING_FACE = CONFIG_NAME, "tokenizer.pkl", "tokenizer.json"


def tokenizer_paths(folder: CheckpointFolder) -> list[Path]:
    """Every path at which a file of a checkpoint's tokenizer may be, whether or not there is one."""
    names = (_CHARACTERS, _PICKLE, _HUGGING_FACE, TEMPLATE_NAME)
    return [place / name for place in _places(folder) for name in names]


def _places(folder: CheckpointFolder) -> tuple[Path, ...]:
    return folder.path, folder.path / "tokenizer", folder.path.parent.parent / "tokenizer"


def tokenizer_file(folder: CheckpointFolder) -> Path | None:
    """The file of a checkpoint's tokenizer, None if there is none. Raises TokenizerError.

    Three folders are searched: that of the weights; `tokenizer/` in it; and the one that nanochat uses, `tokenizer/`
    beside the folder of all runs. A `tokenizer_config.json` without `vocab_chars` belongs to a Hugging Face tokenizer.
    """
    without_characters = None
    for place in _places(folder):
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


def read_tokenizer(file: Path) -> bytes:
    """The content of a tokenizer's file. Raises TokenizerError."""
    return read_bytes(file, MAX_TOKENIZER_BYTES, TokenizerError)


def tokenizer_content(folder: CheckpointFolder) -> bytes:
    """Everything in the files of a checkpoint that determines its tokenizer; empty without a file.

    Raises TokenizerError.
    """
    file = tokenizer_file(folder)
    if file is None:
        return b""
    content = read_tokenizer(file)
    beside = HuggingFaceConfig.beside(file).content() if file.name == _HUGGING_FACE else b""
    return b"%b\n%b" % (content, beside) if beside else content


def tokenizer_digest(folder: CheckpointFolder) -> str:
    """SHA-256 (hex) of `tokenizer_content`; empty without a file. Raises TokenizerError."""
    content = tokenizer_content(folder)
    return hashlib.sha256(content).hexdigest() if content else ""


def check_tokenizer(folder: CheckpointFolder) -> None:
    """Raise TokenizerError if a checkpoint has no tokenizer that can be used. Raises CheckpointError, too."""
    load_tokenizer(folder, sizes_of(folder).vocab_size)


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
            return BpeTokenizer.from_pickle(read_tokenizer(file), vocab_size)
        return HuggingFaceTokenizer.from_json(read_tokenizer(file), vocab_size, HuggingFaceConfig.beside(file))
    except ValueError as error:
        raise TokenizerError(file, str(error)) from error
