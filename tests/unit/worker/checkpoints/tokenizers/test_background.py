"""A tokenizer that is loaded in a thread is the one whose files have the digest that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.worker.checkpoints.tokenizers.test_ends import BOS, EOS, write
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.tokenizers import tokenizer_digest
from worker.checkpoints.tokenizers.background import BackgroundLoad, LoadedTokenizer


def test_the_tokenizer_is_there_after_the_block(tmp_path: Path) -> None:
    folder = write(tmp_path)
    load = BackgroundLoad(folder)
    with load:
        pass
    found = load.result(tokenizer_digest(folder))
    assert found.tokenizer.bos_id == BOS
    assert found.blob == LoadedTokenizer.load(folder).blob
    # It was loaded before, and not again.
    assert load.result(found.digest) is found


def test_files_that_were_written_meanwhile_are_loaded_again(tmp_path: Path) -> None:
    folder = write(tmp_path)
    load = BackgroundLoad(folder)
    with load:
        pass
    write(tmp_path, generation={"eos_token_id": 7})
    assert load.result(tokenizer_digest(folder)).tokenizer.stop_ids == {7, EOS}


def test_an_error_that_is_gone_does_not_matter_and_another_is_raised(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    load = BackgroundLoad(folder)
    with load:
        pass
    with pytest.raises(TokenizerError):
        load.result("any")
    write(tmp_path)
    assert load.result(tokenizer_digest(folder)).tokenizer.bos_id == BOS
