"""From a prompt to a text in the engine, with a tokenizer in the style of SentencePiece: spaces, bytes, and ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.generation import FinishReason
from tasks.sampling_params import SamplingParams
from tests.helpers.huggingface_folders import GOLDEN_HF
from tests.unit.worker.checkpoints.tokenizers.kinds import metaspace
from worker.local import Completion, LocalModel

NEWLINE, THE, EOS, ALSO_EOS = 3 + 0x0A, 265, 2, 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = Path(shutil.copytree(GOLDEN_HF / "mistral", tmp_path_factory.mktemp("texts") / "model"))
    (folder / "tokenizer.json").write_text(metaspace())
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}')
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, ALSO_EOS]}))
    return LocalModel.load(str(folder), folder.parent, device="cpu", threads=1)


def always(model: LocalModel, token_id: int, prompt: str = "the", **sampling: Any) -> Completion:
    """An answer in which every token is the same."""
    params = SamplingParams(**{"max_tokens": 3, "temperature": 0.0, **sampling}, logit_bias=((token_id, 100.0),))
    return model.generate(model.encode(prompt)[0], params)


def test_an_answer_keeps_its_first_space_unless_the_prompt_has_no_text(model: LocalModel) -> None:
    assert always(model, THE).text == " th th th"
    assert always(model, THE, prompt="").text == "th th th"


def test_bytes_at_the_end_of_an_answer_are_text(model: LocalModel) -> None:
    assert always(model, NEWLINE).text == "\n\n\n"
    assert always(model, 3 + 0xF0).text == "\ufffd" * 3


def test_stop_texts_and_newlines_of_bytes_end_an_answer_at_once(model: LocalModel) -> None:
    stopped = always(model, NEWLINE, stop=("\n\n",))
    assert (stopped.text, len(stopped.token_ids), stopped.finish_reason) == ("", 2, FinishReason.STOP)
    newline = always(model, NEWLINE, stop_on_newline=True)
    assert (newline.text, len(newline.token_ids), newline.finish_reason) == ("\n", 1, FinishReason.NEWLINE)
    least = always(model, NEWLINE, stop_on_newline=True, min_tokens=2)
    assert (least.text, len(least.token_ids)) == ("\n\n", 2)


@pytest.mark.parametrize("stop_id", [EOS, ALSO_EOS])
def test_every_id_of_the_files_ends_an_answer_without_being_part_of_it(model: LocalModel, stop_id: int) -> None:
    ended = always(model, stop_id)
    assert (ended.text, ended.token_ids, ended.stop_id) == ("", (), stop_id)
    assert ended.finish_reason is FinishReason.STOP


def test_bos_does_not_end_an_answer_and_is_never_sampled(model: LocalModel) -> None:
    assert model.tokenizer is not None
    bos = model.tokenizer.bos_id
    assert bos is not None
    assert bos not in always(model, bos).token_ids
