"""Cards describe a checkpoint, and their digests differ exactly where answers may differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.card import Card, TokenizerCard
from tests.helpers.checkpoint_files import meta, state_dict, write
from tests.helpers.engines import GOLDEN
from tests.helpers.huggingface_folders import GOLDEN_HF
from worker.checkpoints.cards import build_card
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.checkpoints.tokenizers import load_tokenizer

VOCABULARY = {"vocab_chars": "0123456789", "special_tokens": ["<|bos|>"]}


def card(folder: Path, *, with_text: bool = True, softcap: float | None = None) -> Card:
    checkpoint = load(find(str(folder), folder.parent), softcap=softcap)
    tokenizer = load_tokenizer(checkpoint.folder, checkpoint.config.vocab_size) if with_text else None
    return build_card(checkpoint, tokenizer, kv_bytes_per_token=2304)


def written(folder: Path, **arguments: Any) -> Path:
    write(folder, **arguments)
    (folder / "tokenizer_config.json").write_text(json.dumps(VOCABULARY))
    return folder


def test_the_card_of_a_guides_checkpoint() -> None:
    assert replace(card(GOLDEN / "E1b-seed" / "step_000102"), digest="") == Card(
        name="step_000102",
        digest="",
        step=102,
        loss=0.2627,
        loss_name="val_loss",
        era="E1b",
        n_layer=4,
        n_head=3,
        n_kv_head=3,
        n_embd=96,
        vocab_size=32,
        context=256,
        softcap=15.0,
        parameters=4 * 12 * 96**2 + 2 * 32 * 96,
        # The embedding is in bf16, as trainers on CUDA save it.
        weight_bytes=4 * (4 * 12 * 96**2 + 32 * 96) + 2 * 32 * 96,
        kv_bytes_per_token=2304,
        tokenizer=TokenizerCard(
            kind="characters",
            text_ids=17,
            characters="0123456789+-HBL.\n",
            unknown="skip",
            bos_id=17,
            prepend_bos=True,
            eos_id=17,
        ),
    )


def test_the_card_of_a_checkpoint_without_tokenizer() -> None:
    folder = GOLDEN / "E7" / "step_000101"
    found = card(folder, with_text=False)
    assert (found.era, found.context, found.loss_name, found.tokenizer) == (
        *("E7", 768, "val_bpb"),
        TokenizerCard(kind="none", text_ids=0),
    )
    with pytest.raises(TokenizerError):
        card(folder)


def test_weight_bytes_are_those_on_disk(tmp_path: Path) -> None:
    weights = state_dict()
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].bfloat16()
    found = card(written(tmp_path / "run", weights=weights))
    assert found.weight_bytes == 4 * found.parameters - 2 * 64 * 48


@pytest.mark.parametrize("loss", [None, float("inf"), float("nan"), 0.25])
def test_a_card_is_strict_json_and_is_read_back(tmp_path: Path, loss: float | None) -> None:
    found = card(written(tmp_path / "run", content=meta(val_bpb=loss)))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(found.to_json(), parse_constant=refuse)["loss"] == (0.25 if loss == 0.25 else None)
    assert Card.from_json(found.to_json()) == found
    assert Card.from_json(found.to_json().encode()) == found
    assert "\n" not in found.to_json()


def test_equal_files_have_equal_digests_in_any_folder(tmp_path: Path) -> None:
    folder = written(tmp_path / "step_000007")
    digest = card(folder).digest
    assert len(bytes.fromhex(digest)) == 32
    shutil.copytree(folder, tmp_path / "elsewhere" / "best")
    assert card(tmp_path / "elsewhere" / "best").digest == digest
    renamed = tmp_path / "elsewhere" / "best"
    for name in ("model_{}.pt", "meta_{}.json"):
        (renamed / name.format("000007")).rename(renamed / name.format("000009"))
    assert card(renamed).digest == digest
    assert card(renamed).name == "best"


def test_losses_and_steps_do_not_change_the_digest(tmp_path: Path) -> None:
    first = card(written(tmp_path / "a", content=meta(val_bpb=0.5)))
    second = card(written(tmp_path / "b", content=meta(val_bpb=0.4, step=8)))
    assert first.digest == second.digest


def one_weight(folder: Path) -> None:
    weights = state_dict("E4")
    weights["transformer.h.1.mlp.c_fc.weight"][3, 5] += 1e-7
    torch.save(weights, folder / "model_000007.pt")


def another_type(folder: Path) -> None:
    weights = state_dict("E4")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].bfloat16()
    torch.save(weights, folder / "model_000007.pt")


def swapped(folder: Path) -> None:
    weights = state_dict("E4")
    first, second = (f"transformer.h.{i}.attn.c_q.weight" for i in range(2))
    weights[first], weights[second] = weights[second], weights[first]
    torch.save(weights, folder / "model_000007.pt")


def config(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "meta_000007.json").write_text(json.dumps(meta("E4", **{name: value})))

    return change


def vocabulary(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text(json.dumps(VOCABULARY | changes))

    return change


@pytest.mark.parametrize(
    "change",
    [
        one_weight,
        another_type,
        swapped,
        config("sequence_len", 256),
        config("vocab_size", 41),
        config("window_pattern", "SL"),
        vocabulary(vocab_chars="1023456789"),
        vocabulary(special_tokens=[]),
    ],
)
def test_everything_that_changes_an_answer_changes_the_digest(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = written(tmp_path / "run", era="E4")
    before = card(folder).digest
    assert card(folder).digest == before
    change(folder)
    assert card(folder).digest != before


def test_another_softcap_or_a_missing_tokenizer_changes_the_digest(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", era="E4")
    digests = {card(folder).digest, card(folder, softcap=20.0).digest, card(folder, with_text=False).digest}
    assert len(digests) == 3


def test_without_checksums_the_digest_depends_on_the_content(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        first = written(tmp_path / "a", weights=state_dict(seed=1))
        second = written(tmp_path / "b", weights=state_dict(seed=2))
    finally:
        torch.serialization.set_crc32_options(True)
    shutil.copytree(first, tmp_path / "c")
    assert card(first).digest != card(second).digest
    assert card(first).digest == card(tmp_path / "c").digest


def test_a_broken_tokenizer_does_not_prevent_a_card_for_token_ids(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    (folder / "tokenizer_config.json").write_text("{")
    assert card(folder, with_text=False).tokenizer.kind == "none"


def test_a_file_that_was_replaced_after_loading_does_not_change_the_digest(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    checkpoint = load(find(str(folder), tmp_path))
    before = build_card(checkpoint, None, kv_bytes_per_token=1)
    torch.save(state_dict(seed=1), tmp_path / "other.pt")
    (tmp_path / "other.pt").replace(folder / "model_000007.pt")
    assert build_card(checkpoint, None, kv_bytes_per_token=1) == before
    assert build_card(load(find(str(folder), tmp_path)), None, kv_bytes_per_token=1).digest != before.digest


def test_the_card_of_a_hugging_face_folder_has_its_default_sampling(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN_HF / "qwen2", tmp_path / "qwen2"))
    plain = card(folder)
    assert plain.default_sampling is None
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.7, "top_k": 20, "top_p": 1.0}')
    found = card(folder)
    assert found.default_sampling == {"temperature": 0.7, "top_k": 20}
    assert Card.from_json(found.to_json()) == found
    # It changes no answer: each job has its own values.
    assert found.digest == plain.digest
