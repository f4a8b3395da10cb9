"""Converted and exported folders beside transformers: its own reader of GGUF, and its NanoChat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from celeriac.cli import main
from tests.conformance.client_environment import ClientEnvironment
from tests.helpers.gguf_files import of_folder
from tests.helpers.smollm2 import smollm2_gguf
from tests.integration.stack import CHECKPOINTS, ROOT, SHIPPED

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests" / "fixtures" / "golden"
GOLDEN_HF = ROOT / "tests" / "fixtures" / "golden-hf"
TEXTS = [
    *("Hello world", " one space", "  two", "12345 and 3.14", "naïve café ЖЖ 你好 🎉🎉", "a\n\n\nb\t\tc", ""),
    *("def f(x):\n    return x + 1\n", "<|im_start|>user\nhi<|im_end|>", "I'll don't WE'RE", "x" * 300, "\u2126 ﬁ"),
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a colour."},
    ],
]


@pytest.fixture
def environment(tmp_path: Path) -> ClientEnvironment:
    """The environment with transformers."""
    (tmp_path / "home").mkdir()
    return ClientEnvironment("clients", tmp_path / "home")


def write(command: str, source: Path, folder: Path, *options: str) -> Path:
    result = CliRunner().invoke(main, [command, str(source), str(folder), *options])
    assert result.exit_code == 0, result.output
    return folder


def test_smollm2_is_what_transformers_reads_in_the_file(environment: ClientEnvironment, tmp_path: Path) -> None:
    file = smollm2_gguf()
    request = {
        "file": str(file),
        "folder": str(write("convert", file, tmp_path / "model", "--fp32")),
        "prompt": [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
        "texts": TEXTS,
        "chats": CHATS,
    }
    [found] = environment.script("gguf_reader", {"requests": [request]})
    assert found == {"tensors": 272, "different": [], "missing": [], "logits": 0.0, "texts": [], "prompts": []}


def test_other_families_are_what_transformers_reads(environment: ClientEnvironment, tmp_path: Path) -> None:
    # Its environment has the package `gguf` if that of SmolLM2 is there.
    smollm2_gguf()
    requests = []
    # transformers does not read the others.
    for family in ("llama", "qwen2", "qwen3", "gpt2"):
        file = of_folder(GOLDEN_HF / family).write(tmp_path / f"{family}.gguf")
        folder = write("convert", file, tmp_path / family)
        requests.append({"file": str(file), "folder": str(folder), "prompt": [5, 6, 7, 8, 9], "texts": [], "chats": []})
    for found in environment.script("gguf_reader", {"requests": requests}):
        assert (found["different"], found["missing"], found["logits"]) == ([], [], 0.0)


def test_converted_folders_have_logits_and_ids_of_the_folders_that_the_files_were_made_from(
    environment: ClientEnvironment, tmp_path: Path
) -> None:
    families = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt2"]
    requests = []
    for family in families:
        expected = json.loads((GOLDEN_HF / family / "expected.json").read_text())
        file = of_folder(GOLDEN_HF / family).write(tmp_path / f"{family}.gguf")
        request = {
            "prompts": [case["prompt"] for case in expected["cases"]],
            "texts": [text["text"] for text in expected["texts"]],
        }
        converted = write("convert", file, tmp_path / family)
        requests += [{**request, "folder": str(folder)} for folder in (GOLDEN_HF / family, converted)]
    answers = environment.script("last_logits", {"requests": requests})
    for family, original, found in zip(families, answers[::2], answers[1::2], strict=True):
        assert found["ids"] == original["ids"], family
        for logits, expected in zip(found["logits"], original["logits"], strict=True):
            assert logits == pytest.approx(expected, abs=1e-5), family


def with_vocabulary(source: Path, folder: Path) -> Path:
    """A checkpoint with a vocabulary of characters, which the reference checkpoints lack."""
    folder.mkdir()
    for file in source.glob("m*_*"):
        (folder / file.name).symlink_to(file)
    [meta] = source.glob("meta_*.json")
    vocab_size = json.loads(meta.read_text())["model_config"]["vocab_size"]
    vocabulary = {
        "vocab_chars": [chr(0x100 + i) for i in range(vocab_size - 1)],
        "special_tokens": ["<|bos|>"],
        "vocab_size": vocab_size,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(vocabulary))
    return folder


def test_exported_checkpoints_have_nanochats_logits(environment: ClientEnvironment, tmp_path: Path) -> None:
    cases, requests = [], []
    for era in ("E1a", "E1b", "E1b-seed"):
        [source] = (GOLDEN / era).glob("step_*")
        folder = write("export", with_vocabulary(source, tmp_path / era), tmp_path / f"{era}-exported")
        cases.append(json.loads((source / "expected.json").read_text())["cases"])
        request = {"folder": str(folder), "prompts": [case["prompt"] for case in cases[-1]]}
        # transformers does not round its tables. docs/reference/commands.md says what that changes.
        requests += [{**request, "rounded": True}, request]
    answers = environment.script("last_logits", {"requests": requests})
    for of_era, rounded, plain in zip(cases, answers[::2], answers[1::2], strict=True):
        for case, logits, other in zip(of_era, rounded["logits"], plain["logits"], strict=True):
            assert logits == pytest.approx(case["last_logits"], abs=1e-4)
            assert other == pytest.approx(case["last_logits"], abs=1e-2)


def test_the_shipped_checkpoint_is_the_same_in_transformers(environment: ClientEnvironment, tmp_path: Path) -> None:
    folder = write("export", CHECKPOINTS / SHIPPED, tmp_path / "exported")
    prompts = ["123+456=", "9-", "77+8=\n12+12=", "H" * 40]
    options = ["--json", "--logits", "--max-tokens", "1", "--temperature", "0"]
    found = []
    for prompt in prompts:
        result = CliRunner().invoke(main, ["run", str(CHECKPOINTS / SHIPPED), "--prompt", prompt, *options])
        found.append(json.loads(result.stdout))
    request = {"folder": str(folder), "prompts": [one["prompt_ids"] for one in found], "texts": prompts}
    [answer] = environment.script("last_logits", {"requests": [{**request, "rounded": True}]})
    assert answer["ids"] == [one["prompt_ids"] for one in found]
    for one, logits in zip(found, answer["logits"], strict=True):
        assert one["last_logits"] == pytest.approx(logits, abs=2e-3)
