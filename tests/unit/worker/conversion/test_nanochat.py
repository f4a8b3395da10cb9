"""Checkpoints of era E1 as folders of Hugging Face, and the refusal of later ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from celeriac.cli import main
from tests.helpers import checkpoint_files, tokenizer_files
from tests.helpers.gguf_files import read_weights
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.conversion.model_folder import ModelFolder
from worker.conversion.nanochat import read_nanochat

SHIPPED = Path(__file__).parents[4] / "checkpoints"
#: Tokens of text and special tokens.
VOCAB_SIZE = tokenizer_files.TEXT_IDS + len(tokenizer_files.SPECIALS)
SIZES = {"vocab_size": VOCAB_SIZE}
NAMES = {
    "transformer.wte": "model.embed_tokens",
    "lm_head": "lm_head",
    "transformer.h.2.attn.c_q": "model.layers.2.self_attn.q_proj",
    "transformer.h.2.attn.c_k": "model.layers.2.self_attn.k_proj",
    "transformer.h.2.attn.c_v": "model.layers.2.self_attn.v_proj",
    "transformer.h.2.attn.c_proj": "model.layers.2.self_attn.o_proj",
    "transformer.h.2.mlp.c_fc": "model.layers.2.mlp.fc1",
    "transformer.h.2.mlp.c_proj": "model.layers.2.mlp.fc2",
}


def checkpoint(folder: Path, era: str = "E1b", *, table: torch.dtype = torch.float32) -> Path:
    """A checkpoint with nanochat's tokenizer. `table`: the type of its embedding."""
    rows = 320 if era != "E1a" else VOCAB_SIZE
    weights = checkpoint_files.state_dict(era, rows=rows, **SIZES)
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].to(table)
    checkpoint_files.write(folder, weights, checkpoint_files.meta(era, **SIZES))
    (folder / "tokenizer.pkl").write_bytes(tokenizer_files.pickled())
    return folder


def read(folder: Path, *, softcap: float | None = None) -> ModelFolder:
    return read_nanochat(find(str(folder), folder.parent), softcap=softcap)


@pytest.mark.parametrize("era", ["E1a", "E1b"])
def test_weights_and_configuration(era: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "d3", era)
    model = read(folder)
    (tmp_path / "out").mkdir()
    model.write_into(tmp_path / "out", lambda size: None)
    found = read_weights(tmp_path / "out")
    original = torch.load(folder / "model_000007.pt", weights_only=True)
    assert len(found) == len(original)
    for source, name in NAMES.items():
        # Rows after the last id are padding.
        assert found[f"{name}.weight"][0] == "F32"
        assert np.array_equal(found[f"{name}.weight"][1], original[f"{source}.weight"][:VOCAB_SIZE].numpy()), name
    assert model.config == {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "hidden_act": "relu2",
        "rms_norm_eps": 2.0**-23,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "final_logit_softcapping": 15.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 262,
        # <|assistant_end|>, and BOS, with which nanochat ends an answer as well.
        "eos_token_id": [266, 262],
        "pad_token_id": 266,
        "dtype": "float32",
    }
    assert model.generation_config == {"bos_token_id": 262, "eos_token_id": [266, 262], "pad_token_id": 266}
    assert read(folder, softcap=20.0).config["final_logit_softcapping"] == 20.0


def test_the_tokenizer_comes_with_the_template_in_its_own_file(tmp_path: Path) -> None:
    model = read(checkpoint(tmp_path / "d3"))
    assert model.tokenizer_config["bos_token"] == "<|bos|>"
    assert "chat_template" not in model.tokenizer_config
    assert model.chat_template is not None
    assert "_start|>" in model.chat_template


def test_an_embedding_in_bf16_is_widened(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "d3", table=torch.bfloat16)
    model = read(folder)
    (tmp_path / "out").mkdir()
    model.write_into(tmp_path / "out", lambda size: None)
    kind, table = read_weights(tmp_path / "out")["model.embed_tokens.weight"]
    original = torch.load(folder / "model_000007.pt", weights_only=True)["transformer.wte.weight"]
    assert kind == "F32"
    assert np.array_equal(table, original[:VOCAB_SIZE].float().numpy())
    assert model.config["dtype"] == "float32"


@pytest.mark.parametrize(
    ("era", "reason"),
    [
        ("E2", "no factors of the residual stream (resid_lambdas, x0_lambdas)"),
        ("E3", "no sliding windows"),
        ("E4", "no value embeddings"),
        ("E6", "no factor of queries and keys"),
        ("E7", "no smear and backout"),
    ],
)
def test_later_eras_are_refused_with_the_reason(era: str, reason: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "d3", era)
    with pytest.raises(CheckpointError) as error:
        read(folder)
    assert f"is of era {era}, which cannot be exported" in str(error.value)
    assert reason in str(error.value)


def test_a_folder_of_hugging_face_is_refused(tmp_path: Path) -> None:
    golden = Path(__file__).parents[3] / "fixtures" / "golden-hf" / "nanochat"
    with pytest.raises(CheckpointError, match="is a folder of Hugging Face already"):
        read(golden)


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "d3")
    (folder / "tokenizer.pkl").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        read(folder)


def test_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(SHIPPED / "step_002920"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "nanochat" in result.stdout
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 32
    again = CliRunner().invoke(main, ["export", str(SHIPPED / "step_003650"), str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "is not empty" in again.stderr
    later = CliRunner().invoke(main, ["export", str(SHIPPED / "arithmetic_chat"), str(tmp_path / "chat")])
    assert later.exit_code == 1
    assert "is of era E7" in later.stderr
    assert not (tmp_path / "chat").exists()
