"""Loading a large model holds its weights in memory once, not twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

#: A model of 12 layers and 1024 channels with a large vocabulary: 0.8 GB, with the embedding in bf16.
SHAPE = {"sequence_len": 256, "vocab_size": 32_768, "n_layer": 12, "n_head": 8, "n_kv_head": 8, "n_embd": 1024}
MOST_TIMES_THE_WEIGHTS = 1.2

#: Loads the model of the folder argv[1] and prints how many bytes of memory this process takes during that.
PROGRAM = """
import json, sys, threading
from pathlib import Path
import torch
from tasks.sampling_params import SamplingParams
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.engine.backends import load_weights
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.engine.torch.model import Model
from worker.engine.vocabulary import Vocabulary

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {"anonymous": int(fields["RssAnon"]) * 1024, "mapped": int(fields["RssFile"]) * 1024}

samples, loaded = [], threading.Event()
def sample():
    while not loaded.wait(0.002):
        samples.append(memory())

device = Device.choose("cpu", threads=1)
torch.nn.functional.linear(torch.ones(8, 8), torch.ones(8, 8))
before = memory()
sampler = threading.Thread(target=sample)
sampler.start()
checkpoint = load(find(sys.argv[1], Path(sys.argv[1]).parent))
form = Model.load if sys.argv[2] == "torch" else load_weights
model = form(checkpoint.config, checkpoint.weights, device)
loaded.set()
sampler.join()
engine = Engine(model, Vocabulary.without_text(32768), slots=1, kv_tokens=256, prefill_chunk_tokens=64)
sampling = SamplingParams(max_tokens=2, temperature=0.0)
sequence = engine.add_request(SequenceRequest(id="a", prompt=(1, 2), sampling=sampling, every_id=True))
while engine.has_work:
    engine.step()
print(json.dumps({
    "anonymous": max(one["anonymous"] for one in samples) - before["anonymous"],
    "all": max(one["anonymous"] + one["mapped"] for one in samples) - sum(before.values()),
    "after": memory()["anonymous"] - before["anonymous"],
    "weights": sum(tensor.nbytes for tensor in checkpoint.weights.tensors.values()),
    "tokens": sequence.tokens,
}))
"""


def write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    width, rows = SHAPE["n_embd"], SHAPE["vocab_size"]
    weights = {
        "transformer.wte.weight": torch.ones(rows, width, dtype=torch.bfloat16),
        "lm_head.weight": torch.ones(rows, width),
    }
    for i in range(SHAPE["n_layer"]):
        layer = f"transformer.h.{i}."
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            weights[f"{layer}attn.{name}.weight"] = torch.ones(width, width)
        weights[f"{layer}mlp.c_fc.weight"] = torch.ones(4 * width, width)
        weights[f"{layer}mlp.c_proj.weight"] = torch.ones(width, 4 * width)
    torch.save(weights, folder / "model_000001.pt")
    (folder / "meta_000001.json").write_text(json.dumps({"step": 1, "val_bpb": 1.0, "model_config": SHAPE}))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("form", ["torch", "fastest"])
def test_peak_memory_of_loading_is_little_more_than_the_weights(form: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step_000001")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "step_000001"), form], capture_output=True, text=True, check=True
    )
    measured = json.loads(result.stdout)
    for part in ("anonymous", "all"):
        print(f"{part} memory peaks at {measured[part] / measured['weights']:.3f} times the weights")
    assert measured["weights"] > 500e6
    assert measured["anonymous"] <= MOST_TIMES_THE_WEIGHTS * measured["weights"], measured
    assert measured["all"] <= MOST_TIMES_THE_WEIGHTS * measured["weights"], measured
    assert len(measured["tokens"]) == 2
