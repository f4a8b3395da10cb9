"""The weights file: every variant that is accepted, and every refusal with its file and reason."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import reference
from tests.helpers.checkpoint_files import SIZES, meta, state_dict, write
from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load


def loaded(folder: Path, softcap: float | None = None) -> Checkpoint:
    return load(find(str(folder), folder.parent), softcap=softcap)


def refusal(folder: Path, name: str = "model_000007.pt") -> str:
    with pytest.raises(CheckpointError) as caught:
        loaded(folder)
    assert str(caught.value).startswith(f"{folder / name}: ")
    return str(caught.value)


# What is accepted


@pytest.mark.parametrize("era", ["E1b", "E2", "E3", "E4", "E6", "E7"])
def test_the_era_is_recognized_by_tensors_and_meta_file(tmp_path: Path, era: str) -> None:
    found = loaded(write(tmp_path / "run", era=era))
    assert found.config.era == era
    expected = state_dict(era)
    assert found.weights.keys() == expected.keys()
    assert all(found.weights[name].equal(tensor) for name, tensor in expected.items())


def test_without_padded_rows_it_is_the_first_era(tmp_path: Path) -> None:
    assert loaded(write(tmp_path / "run", state_dict(rows=SIZES["vocab_size"]))).config.era == "E1a"


def test_the_guides_32_ids_are_e1b(tmp_path: Path) -> None:
    weights = state_dict(rows=32, vocab_size=32)
    assert loaded(write(tmp_path / "run", weights, meta(vocab_size=32))).config.era == "E1b"


def test_rows_beyond_the_vocabulary_do_not_count_as_ids(tmp_path: Path) -> None:
    config = loaded(write(tmp_path / "run")).config
    assert (config.vocab_size, config.rows) == (40, 64)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, prefix: str) -> None:
    weights = {f"{prefix}{name}": tensor for name, tensor in state_dict("E2").items()}
    assert loaded(write(tmp_path / "run", weights, meta("E2"))).weights.keys() == state_dict("E2").keys()


def test_bf16_embeddings_stay_bf16(tmp_path: Path) -> None:
    weights = state_dict("E4")
    for name in ("transformer.wte.weight", "value_embeds.2.weight"):
        weights[name] = weights[name].bfloat16()
    found = loaded(write(tmp_path / "run", weights, meta("E4")))
    assert found.weights["transformer.wte.weight"].dtype is torch.bfloat16
    assert found.weights["lm_head.weight"].dtype is torch.float32


def test_a_state_dict_of_parameters_is_accepted(tmp_path: Path) -> None:
    parameters = OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in state_dict().items())
    parameters["lm_head.weight"].note = "a Python attribute"  # type: ignore[attr-defined]
    found = loaded(write(tmp_path / "run", parameters))
    assert not any(tensor.requires_grad for tensor in found.weights.values())


def test_optimizer_files_are_ignored(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "optim_000007.pt").write_bytes(b"no checkpoint at all")
    (folder / "optim_000007_rank0.pt").write_bytes(b"")
    assert loaded(folder).config.n_layer == 3


def test_a_meta_file_without_step_and_loss_is_enough(tmp_path: Path) -> None:
    found = loaded(write(tmp_path / "run", content={"model_config": SIZES}))
    assert (found.folder.step, found.loss) == (7, None)


def test_windows_repeat_the_pattern_and_the_last_layer_has_full_attention(tmp_path: Path) -> None:
    weights = state_dict("E3", n_layer=5)
    config = loaded(write(tmp_path / "run", weights, meta("E3", n_layer=5, window_pattern="sls"))).config
    assert config.windows == (64, 128, 64, 64, 128)


@pytest.mark.parametrize(("era", "window"), [("E4", 1024), ("E6", 768), ("E7", 512)])
def test_the_short_window_of_a_context_of_2048_depends_on_the_era(tmp_path: Path, era: str, window: int) -> None:
    content = meta(era, sequence_len=2048)
    assert loaded(write(tmp_path / "run", content=content, weights=state_dict(era))).config.windows[0] == window


def test_the_softcap_can_be_overridden(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    assert loaded(folder).config.softcap == 15.0
    assert loaded(folder, softcap=30.0).config.softcap == 30.0


@pytest.mark.parametrize("softcap", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_softcap_is_refused(tmp_path: Path, softcap: float) -> None:
    with pytest.raises(CheckpointError, match="softcap: must be a finite number above 0"):
        loaded(write(tmp_path / "run"), softcap=softcap)


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    found = loaded(folder)
    assert found.weights.tensors["lm_head.weight"].shape == (64, 48)
    first, second = (found.weights["lm_head.weight"] for _ in range(2))
    assert first.equal(second)
    assert first.data_ptr() != second.data_ptr()


def test_views_and_transposed_tensors_are_read_as_they_were_saved(tmp_path: Path) -> None:
    weights = state_dict()
    weights["lm_head.weight"] = torch.randn(48, 64).t()
    weights["transformer.wte.weight"] = torch.randn(100, 48)[20:84]
    weights["transformer.h.0.attn.c_q.weight"] = torch.randn(48, 96)[:, ::2]
    found = loaded(write(tmp_path / "run", weights))
    assert all(found.weights[name].equal(tensor) for name, tensor in weights.items())


def test_a_loaded_checkpoint_gives_the_logits_of_the_saved_one(tmp_path: Path) -> None:
    found = loaded(write(tmp_path / "run", era="E7"))
    ids = [1, 5, 9, 39]
    assert reference.logits(found.config, found.weights, ids).equal(
        reference.logits(found.config, state_dict("E7"), ids)
    )


# Architectures that are not supported


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("transformer.h.0.mlp.experts.w_up", "mixture of experts"),
        ("transformer.h.1.mlp.router.gate.weight", "mixture of experts"),
        ("bigram_embed.embed.weight", "E4x"),
        ("bigram_lambdas", "E4x"),
        ("v0_lambdas", "development shape"),
    ],
)
def test_an_architecture_that_is_not_supported_is_refused_by_name(tmp_path: Path, extra: str, reason: str) -> None:
    weights = state_dict("E4") | {f"_orig_mod.{extra}": torch.ones(3)}
    message = refusal(write(tmp_path / "run", weights, meta("E4")))
    assert reason in message
    assert "not supported" in message


# Tensors that do not fit


@pytest.mark.parametrize("era", ["E1b", "E2", "E4", "E7"])
def test_every_missing_tensor_is_refused(tmp_path: Path, era: str) -> None:
    for number, name in enumerate(state_dict(era)):
        weights = {other: tensor for other, tensor in state_dict(era).items() if other != name}
        message = refusal(write(tmp_path / str(number), weights, meta(era)))
        # Without the tensor that identifies an era, the other tensors of this era are the ones that are refused.
        assert name in message or "has tensors that no known era has" in message


@pytest.mark.parametrize("era", ["E1b", "E2", "E4", "E7"])
def test_every_wrong_shape_is_refused(tmp_path: Path, era: str) -> None:
    for number, (name, tensor) in enumerate(state_dict(era).items()):
        wrong = state_dict(era) | {name: tensor[..., :-1].clone()}
        message = refusal(write(tmp_path / str(number), wrong, meta(era)))
        assert name in message or "gates of the value embeddings" in message or "transformer.wte" in message


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "run", state_dict() | {"transformer.h.3.attn.c_q.weight": torch.ones(48, 48)}))
    assert "has tensors that no known era has: transformer.h.3.attn.c_q.weight" in message


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "run", content=meta(n_layer=30)))
    assert "lacks tensors that its meta file requires" in message
    assert "more" in message


def test_fewer_rows_than_ids_are_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "run", content=meta(vocab_size=65)))
    assert "64 rows" in message
    assert "vocab_size 65" in message


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(64, 48, dtype=torch.int32), "torch.int32"),
        (torch.ones(64, 48, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(64, 48).to_sparse(), "lm_head.weight"),
        (torch.ones(64, 48, device="meta"), "meta device"),
        ([1.0], "is not a named tensor"),
    ],
)
def test_a_tensor_of_another_type_or_without_content_is_refused(tmp_path: Path, tensor: object, reason: str) -> None:
    assert reason in refusal(write(tmp_path / "run", {**state_dict(), "lm_head.weight": tensor}))


def test_a_tensor_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    weights = state_dict() | {"_orig_mod.lm_head.weight": torch.ones(64, 48)}
    assert "holds tensors twice" in refusal(write(tmp_path / "run", weights))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "does not hold a state dict"),
        ({}, "does not hold a state dict"),
        ({"model": state_dict(), "step": 3}, "only a state dict is expected"),
        ({3: torch.ones(1)}, "only a state dict is expected"),
        ({"w": torch.ones(2, 2)}, "is not a nanochat GPT"),
    ],
)
def test_a_file_without_the_tensors_of_a_gpt_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    assert reason in refusal(write(tmp_path / "run", content))


# Files that are damaged, or not checkpoints


def damage(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    file = write(folder) / "model_000007.pt"
    file.write_bytes(change(file.read_bytes()))
    return folder


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    assert "was cut off: copy it again" in refusal(damage(tmp_path / "run", lambda data: data[: int(len(data) * kept)]))


def test_a_file_whose_middle_is_missing_is_refused(tmp_path: Path) -> None:
    message = refusal(damage(tmp_path / "run", lambda data: data[: len(data) // 3] + data[len(data) // 2 :]))
    assert "damaged" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "run `git lfs pull`"),
        (b"<html>404</html>", "was not written by torch.save"),
        (b"PK\x03\x04" + b"\0" * 100, "was cut off"),
        (pickle.dumps({"a": 1}), "bare pickle or in PyTorch's format from before version 1.6"),
    ],
)
def test_a_file_that_torch_did_not_write_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(damage(tmp_path / "run", lambda _: content))


def test_the_format_before_version_1_6_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    torch.save(state_dict(), folder / "model_000007.pt", _use_new_zipfile_serialization=False)
    message = refusal(folder)
    assert "before version 1.6" in message
    assert "save its state dict again" in message


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    with zipfile.ZipFile(folder / "model_000007.pt", "w") as archive:
        archive.writestr("photos/cat.jpg", b"meow")
    assert "not written by torch.save" in refusal(folder)


def test_an_archive_that_was_packed_again_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "run") / "model_000007.pt"
    with zipfile.ZipFile(file) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert "was packed again" in refusal(tmp_path / "run")


def test_damage_anywhere_in_the_index_gives_a_message(tmp_path: Path) -> None:
    """Overwrite single bytes of the pickle that lists the tensors. Loading may only raise CheckpointError."""
    small: dict[str, Any] = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_kv_head": 1, "vocab_size": 4, "sequence_len": 8}
    folder = write(tmp_path / "run", state_dict(rows=4, **small), meta(**small))
    file = folder / "model_000007.pt"
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
    name_length, extra_length = struct.unpack_from("<HH", data, info.header_offset + 26)
    begin = info.header_offset + 30 + name_length + extra_length
    refused = 0
    for offset in range(begin, begin + info.file_size, 3):
        broken = bytearray(data)
        broken[offset] ^= 0xFF
        file.write_bytes(broken)
        try:
            loaded(folder)
        except CheckpointError as error:
            assert str(error).startswith(str(file))  # noqa: PT017
            refused += 1
    assert refused > info.file_size // 6


# Files that try to run code


class RunsCode:
    """An object of an attacker: unpickling it creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was_here"
    message = refusal(write(tmp_path / "run", {**state_dict(), "evil": RunsCode(marker)}))
    assert "it refers to posix.mkdir" in message or "it refers to nt.mkdir" in message
    assert "it was not loaded" in message
    assert "weights_only" not in message, "torch advises to trust the file"
    assert not marker.exists()


def test_code_in_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was_here"
    refusal(damage(tmp_path / "run", lambda _: pickle.dumps(RunsCode(marker))))
    assert not marker.exists()
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists(), "the pickle does not run code, so this test proves nothing"


def test_a_meta_file_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", content=meta(n_embd=96))
    assert "its meta file requires (64, 96)" in refusal(folder)
    (folder / "meta_000007.json").write_text(json.dumps(meta(n_layer=2)))
    assert "has tensors that no known era has: transformer.h.2." in refusal(folder)


def test_weights_without_an_embedding_matrix_are_refused(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = state_dict() | {"transformer.wte.weight": torch.ones(64)}
    assert "no matrix transformer.wte.weight" in refusal(write(tmp_path / "run", weights))
