"""Folders in Hugging Face's form are found beside those of nanochat; others are refused with a hint."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.checkpoint_files import write
from tests.helpers.huggingface_folders import CONFIG, GOLDEN_HF, INDEX, WEIGHTS, copied
from worker.checkpoints import file_state
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.file_state import SETTLED_AFTER_S, CheckpointFiles
from worker.checkpoints.folder import CheckpointFolder, find, runs_below
from worker.checkpoints.formats import load
from worker.checkpoints.offers import offers
from worker.checkpoints.runs import runs_in
from worker.checkpoints.sizes import sizes_of
from worker.engine_process import loading
from worker.engine_process.loading import load_when_complete
from worker.engine_process.messages import Start
from worker.local import describe


def refusal(path: object, root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        find(str(path), root)
    return str(caught.value)


def test_a_folder_has_a_format_and_no_step() -> None:
    folder = GOLDEN_HF / "llama"
    assert find(str(folder), GOLDEN_HF) == CheckpointFolder(
        path=folder,
        name="llama",
        format="huggingface",
        step=None,
        model_file=folder / INDEX,
        meta_file=folder / CONFIG,
    )
    found = find("gpt2", GOLDEN_HF)
    assert (found.model_file.name, sizes_of(found)) == (WEIGHTS, (420, 256))


def test_a_step_of_it_is_refused() -> None:
    assert "a folder in Hugging Face's form has no steps: leave @7 out" in refusal("llama@7", GOLDEN_HF)


def test_files_of_nanochat_come_first(tmp_path: Path) -> None:
    folder = write(copied("mistral", tmp_path / "run"))
    found = find(str(folder), tmp_path)
    assert (found.format, found.step) == ("nanochat", 7)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([CONFIG], "neither nanochat's model_XXXXXX.pt nor Hugging Face's model.safetensors"),
        ([], "Give the folder with the weights"),
        ([WEIGHTS], f"{CONFIG}: this file is missing beside the weights"),
        ([INDEX], f"{CONFIG}: this file is missing beside the weights"),
        (["pytorch_model.bin"], "pytorch_model.bin is pickled weights"),
        ([CONFIG, "pytorch_model.bin"], f"there is no {WEIGHTS} in this folder. pytorch_model.bin is pickled weights"),
        ([CONFIG, "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "save_pretrained(NEW_FOLDER)"),
        ([CONFIG, "model-00001-of-00002.safetensors"], f"but {INDEX} is missing"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter without its base model. Merge both"),
        (["a.Q4_K_M.gguf", "b.gguf"], "a.Q4_K_M.gguf is a GGUF file: `celeriac convert`"),
        ([CONFIG, "tf_model.h5"], "tf_model.h5 is weights in a form that is not supported"),
    ],
)
def test_a_folder_without_weights_that_can_be_served_says_what_is_there(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    assert reason in refusal(folder, tmp_path)


def test_pickled_weights_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    folder = copied("mistral", tmp_path / "run")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    assert load(find(str(folder), tmp_path)).config.family == "mistral"


def test_a_file_in_place_of_a_folder_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "this is a GGUF file: `celeriac convert`" in refusal(tmp_path / "model.gguf", tmp_path)
    assert "Give the folder that contains it" in refusal(GOLDEN_HF / "gpt2" / WEIGHTS, tmp_path)


def test_it_is_listed_beside_the_runs_of_nanochat(tmp_path: Path) -> None:
    write(tmp_path / "d4")
    copied("llama", tmp_path / "models" / "llama")
    copied("gpt2", tmp_path / "models" / "other", quantization_config={"quant_method": "awq"})
    (copied("qwen2", tmp_path / "models" / "pickled") / WEIGHTS).rename(
        tmp_path / "models" / "pickled" / "pytorch_model.bin"
    )
    assert {path.name for path in runs_below(tmp_path)} == {"d4", "llama", "other", "pickled"}
    d4, llama, other, pickled = runs_in(tmp_path)
    assert (d4.family, d4.era, d4.steps) == ("nanochat", "E1b", (7,))
    assert (llama.family, llama.era, llama.steps, llama.step, llama.problem) == ("llama", None, (), None, None)
    assert other.problem is not None
    assert "quantization_config" in other.problem
    assert pickled.problem is not None
    assert "pickled weights" in pickled.problem
    assert [name for _, name in offers(tmp_path)] == ["d4", "llama", "other"]
    assert runs_in(tmp_path / "models" / "llama") == []


# The cache of huggingface_hub


def cached(root: Path, *commits: str, main: str | None) -> Path:
    """A model as `hf download` stores it: blobs, and snapshots of links to them."""
    model = root / "models--owner--Small-Mistral-0.1B"
    (model / "blobs").mkdir(parents=True)
    for commit in commits:
        (model / "snapshots" / commit).mkdir(parents=True)
    for number, file in enumerate((GOLDEN_HF / "mistral").iterdir()):
        shutil.copy(file, model / "blobs" / f"{number}")
        for commit in commits:
            (model / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{number}")
    if main is not None:
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(main)
    return model


def test_a_snapshot_has_the_name_of_its_model_and_links_to_blobs(tmp_path: Path) -> None:
    model = cached(tmp_path, "abc", "def", main="def")
    for path in (model / "snapshots" / "abc", model):
        found = find(str(path), tmp_path / "root")
        assert found.name == "Small-Mistral-0.1B"
        assert load(found).config.family == "mistral"
    assert found.path.name == "def"
    assert find("models--owner--Small-Mistral-0.1B", tmp_path).path == found.path
    (described,) = runs_in(tmp_path)
    assert (described.name, described.family, described.problem) == ("Small-Mistral-0.1B", "mistral", None)


@pytest.mark.parametrize(("variable", "below"), [("HF_HUB_CACHE", ""), ("HF_HOME", "hub")])
def test_a_model_that_was_downloaded_is_found_by_its_owner_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, below: str
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    cached(tmp_path / "cache" / below, "abc", main="abc")
    found = find("owner/Small-Mistral-0.1B", tmp_path / "root")
    assert (found.name, found.path.name) == ("Small-Mistral-0.1B", "abc")
    message = refusal("owner/other", tmp_path / "root")
    assert message.endswith("If it is a model of Hugging Face, get it with `hf download owner/other` first.")
    for text in ("../other", "a/b/c", "./other", "owner/", "other"):
        assert "hf download" not in refusal(text, tmp_path / "root")


def test_the_only_snapshot_needs_no_branch(tmp_path: Path) -> None:
    assert find(str(cached(tmp_path, "abc", main=None)), tmp_path).path.name == "abc"


def test_several_snapshots_without_a_branch_are_refused(tmp_path: Path) -> None:
    model = cached(tmp_path, "abc", "def", main=None)
    assert "has 2 snapshots and no branch main" in refusal(model, tmp_path)


def test_a_link_of_a_snapshot_out_of_its_model_is_refused(tmp_path: Path) -> None:
    model = cached(tmp_path, "abc", main=None)
    weights = model / "snapshots" / "abc" / WEIGHTS
    weights.unlink()
    weights.symlink_to(GOLDEN_HF / "mistral" / WEIGHTS)
    with pytest.raises(CheckpointError, match="is a link that leads out of this folder"):
        load(find(str(model), tmp_path))


@pytest.mark.parametrize("branch", ["../../..", "/etc", "missing", "", "a" * 200, "a\0b"])
def test_a_branch_that_leads_elsewhere_is_not_followed(tmp_path: Path, branch: str) -> None:
    model = cached(tmp_path, "abc", "def", main=branch)
    assert "has 2 snapshots and no branch main" in refusal(model, tmp_path)


# Files that are being written


def test_files_settle_when_all_parts_are_there(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "llama")
    part = folder / "model-00002-of-00003.safetensors"
    data = part.read_bytes()
    part.unlink()
    later = time.time() + 2 * SETTLED_AFTER_S
    found = find(str(folder), tmp_path)
    incomplete = CheckpointFiles(found, clock=lambda: 0.0, wall_clock=lambda: later)
    assert not incomplete.unchanged_for(SETTLED_AFTER_S)
    part.write_bytes(data[:1000])
    assert incomplete.changed()
    assert not incomplete.changed()
    part.write_bytes(data)
    assert incomplete.changed()
    complete = CheckpointFiles(found, clock=lambda: 0.0, wall_clock=lambda: later)
    assert complete.unchanged_for(SETTLED_AFTER_S)


def test_a_worker_waits_for_the_parts_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part arrives in two steps, seconds after the worker began to load."""
    folder = copied("llama", tmp_path / "llama")
    part = folder / "model-00003-of-00003.safetensors"
    data = part.read_bytes()
    part.unlink()
    now = 0.0
    arrivals = {1.0: data[:-100], 5.0: data}

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        for at in [at for at in arrivals if at <= now]:
            part.write_bytes(arrivals.pop(at))

    monkeypatch.setattr(file_state.time, "sleep", sleep)
    monkeypatch.setattr(loading, "CheckpointFiles", partial(CheckpointFiles, clock=lambda: now, wall_clock=lambda: 0.0))
    start = Start(
        folder=find(str(folder), tmp_path),
        slots=1,
        kv_memory_mb=0,
        prefill_chunk_tokens=16,
        device="cpu",
        threads=1,
        softcap=None,
        weights="exact",
    )
    loaded = load_when_complete(start, lambda _loaded, _total: None)
    assert (loaded.card.family, arrivals) == ("llama", {})
    assert now >= 5.0 + SETTLED_AFTER_S
    assert loaded.card.digest == describe(str(GOLDEN_HF / "llama"), tmp_path, softcap=None, form="exact").card.digest
