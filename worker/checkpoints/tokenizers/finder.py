"""Finds and loads the tokenizer of a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.generation_config import GENERATION_CONFIG_NAME, GenerationConfig
from worker.checkpoints.huggingface_files import checked
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
#: Tokenizers in a folder of Hugging Face that are not read.
_OTHERS = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


def tokenizer_paths(folder: CheckpointFolder) -> list[Path]:
    """Every path at which a file of a checkpoint's tokenizer may be, whether or not there is one."""
    if folder.format == "huggingface":
        return [folder.path / name for name in (_HUGGING_FACE, CONFIG_NAME, TEMPLATE_NAME, GENERATION_CONFIG_NAME)]
    names = (_CHARACTERS, _PICKLE, _HUGGING_FACE, TEMPLATE_NAME)
    return [place / name for place in _places(folder) for name in names]


def _places(folder: CheckpointFolder) -> tuple[Path, ...]:
    return folder.path, folder.path / "tokenizer", folder.path.parent.parent / "tokenizer"


def tokenizer_file(folder: CheckpointFolder) -> Path | None:
    """The file of a checkpoint's tokenizer, None if there is none. Raises CheckpointError.

    A folder of Hugging Face has `tokenizer.json`. For a checkpoint of nanochat, three folders are searched: that of the
    weights; `tokenizer/` in it; and the one that nanochat uses, `tokenizer/` beside the folder of all runs. There, a
    `tokenizer_config.json` without `vocab_chars` belongs to a Hugging Face tokenizer.
    """
    if folder.format == "huggingface":
        file = folder.path / _HUGGING_FACE
        return checked(file) if file.is_file() else None
    return _nanochat_file(folder)


def _nanochat_file(folder: CheckpointFolder) -> Path | None:
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

    Raises CheckpointError.
    """
    file = tokenizer_file(folder)
    if file is None:
        return b""
    content = read_tokenizer(file)
    beside = _config_of(folder, file, sizes_of(folder).vocab_size).content() if file.name == _HUGGING_FACE else b""
    return b"%b\n%b" % (content, beside) if beside else content


def tokenizer_digest(folder: CheckpointFolder) -> str:
    """SHA-256 (hex) of `tokenizer_content`; empty without a file. Raises CheckpointError."""
    content = tokenizer_content(folder)
    return hashlib.sha256(content).hexdigest() if content else ""


def check_tokenizer(folder: CheckpointFolder) -> None:
    """Raise TokenizerError if a checkpoint has no tokenizer that can be used. Raises CheckpointError, too."""
    load_tokenizer(folder, sizes_of(folder).vocab_size)


def load_tokenizer(folder: CheckpointFolder, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint with `vocab_size` ids. Raises CheckpointError, as a rule a TokenizerError."""
    file = tokenizer_file(folder)
    if file is None and folder.format == "huggingface":
        raise _no_tokenizer_json(folder.path)
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
        return HuggingFaceTokenizer.from_json(read_tokenizer(file), vocab_size, _config_of(folder, file, vocab_size))
    except ValueError as error:
        raise TokenizerError(file, str(error)) from error


def _config_of(folder: CheckpointFolder, file: Path, vocab_size: int) -> HuggingFaceConfig:
    """What the files beside a `tokenizer.json` say."""
    if folder.format != "huggingface":
        return HuggingFaceConfig.beside(file)
    for name in (CONFIG_NAME, TEMPLATE_NAME):
        checked(file.with_name(name))
    return HuggingFaceConfig.beside(file, GenerationConfig.read(folder.path, vocab_size).stop_ids)


def _no_tokenizer_json(folder: Path) -> TokenizerError:
    others = [name for name in _OTHERS if (folder / name).exists()]
    if not others:
        return TokenizerError(folder, f"no tokenizer: {_HUGGING_FACE} is missing. Copy it from the model's origin")
    return TokenizerError(
        folder,
        f"no tokenizer: {_HUGGING_FACE} is missing, and {others[0]} is not read. Write it with transformers: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )
