"""`celeriac inspect` and `celeriac run` on a golden checkpoint: from files to text, in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from celeriac.cli import main
from tasks.settings import settings
from tests.helpers.huggingface_folders import GOLDEN_HF, copied

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden"
#: A checkpoint in the original guide's format, without a tokenizer file.
SEED = GOLDEN / "E1b-seed" / "step_000102"
#: A checkpoint without a tokenizer.
BARE = GOLDEN / "E6" / "step_000101"


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


def run(*args: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, args, input=stdin, prog_name="celeriac")


def test_inspect_prints_the_card() -> None:
    result = run("inspect", str(SEED))
    assert result.exit_code == 0, result.output
    fields = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (fields["step"], fields["era"], fields["loss"]) == ("102", "E1b", "0.2627 (val_loss)")
    card = json.loads(run("inspect", str(SEED), "--json").stdout)
    assert (card["name"], card["vocab_size"], card["context"]) == ("step_000102", 32, 256)


def test_inspect_prints_default_sampling(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN_HF / "qwen2", tmp_path / "qwen2"))
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "top_k": 20}')
    assert "temperature 0.7, top_k 20, on OpenAI's routes" in run("inspect", str(folder)).stdout


def test_inspect_shows_the_parts_of_other_families(tmp_path: Path) -> None:
    def shown(folder: Path) -> dict[str, str]:
        result = run("inspect", str(folder))
        assert (result.exit_code, result.stderr) == (0, "")
        return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())

    llama, mistral = shown(GOLDEN_HF / "llama"), shown(GOLDEN_HF / "mistral")
    smollm3, gpt2 = shown(GOLDEN_HF / "smollm3"), shown(GOLDEN_HF / "gpt2")
    assert (llama["family"], llama["positions"]) == ("llama", "rotary (llama3, base 500000, factor 8)")
    assert llama["weights"] == "492,160 bytes in bf16 on disk"
    assert llama.keys().isdisjoint(("era", "step", "loss"))
    assert (mistral["windows"], mistral["MLP"]) == ("32 tokens in layers 0-3", "184 hidden values, silu, gated")
    assert smollm3["positions"] == "rotary (default, base 50000), not in layers 3"
    assert smollm3["parameters"] == "218,688; the head is the embedding"
    assert (gpt2["positions"], gpt2["windows"]) == ("learned", "none: every layer attends to the whole context")
    kinds = {"layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding")]}
    folder = copied("qwen3", tmp_path / "qwen3", use_sliding_window=True, sliding_window=9, **kinds)
    assert shown(folder)["windows"] == "9 tokens in layers 0, 2-3"


def test_inspect_finds_a_name_in_the_checkpoint_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_CHECKPOINT_DIR", str(SEED.parent))
    assert run("inspect", "step_000102").exit_code == 0


def test_inspect_warns_about_a_checkpoint_that_cannot_be_served() -> None:
    result = run("inspect", str(BARE))
    assert result.exit_code == 0
    assert "no tokenizer" in result.stderr


def test_run_agrees_with_the_golden_values() -> None:
    expected = json.loads((BARE / "expected.json").read_text())["cases"][0]
    ids = ",".join(map(str, expected["prompt"]))
    options = ["--token-ids", ids, "--max-tokens", "24", "--temperature", "0", "--ignore-eos", "--logits", "--json"]
    result = run("run", str(BARE), *options)
    assert result.exit_code == 0, result.output
    output = json.loads(result.stdout)
    assert output["prompt_ids"] == expected["prompt"]
    assert output["last_logits"] == pytest.approx(expected["last_logits"], abs=2e-3)
    assert (output["text"], output["finish_reason"], len(output["token_ids"])) == (None, "length", 24)


def test_run_puts_bos_before_a_prompt_and_warns_about_characters_that_it_left_out() -> None:
    result = run("run", str(SEED), "--prompt", "12=+", "--temperature", "0", "--json")
    output = json.loads(result.stdout)
    assert output["prompt_ids"] == [17, 1, 2, 10]
    assert "'='" in result.stderr
    assert "17" not in output["text"]


def test_the_same_seed_gives_the_same_text() -> None:
    first = json.loads(run("run", str(SEED), "--prompt", "1", "--json").stdout)
    again = json.loads(run("run", str(SEED), "--prompt", "1", "--json", "--seed", str(first["seed"])).stdout)
    assert again == first


def test_run_prints_prompt_and_text() -> None:
    output = json.loads(run("run", str(SEED), "--prompt", "12+", "--temperature", "0", "--json").stdout)
    shown = run("run", str(SEED), "--prompt", "12+", "--temperature", "0")
    assert shown.stdout == f"12+{output['text']}\n"


def test_stop_on_newline_and_stop_texts_cut_the_text() -> None:
    long = ["run", str(SEED), "--prompt", "12+", "--temperature", "0", "--ignore-eos", "--json", "--max-tokens", "100"]
    text = json.loads(run(*long).stdout)["text"]
    middle = text[5:7]
    stopped = json.loads(run(*long, "--stop", middle).stdout)
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(middle)], "stop")
    newline = json.loads(run(*long, "--stop-on-newline", "--seed", "3").stdout)
    assert newline["text"] == text[: text.index("\n") + 1 if "\n" in text else None]


def test_biases_and_stop_tokens_change_the_text() -> None:
    base = ["run", str(SEED), "--prompt", "12+", "--temperature", "0", "--ignore-eos", "--json", "--max-tokens", "8"]
    assert json.loads(run(*base, "--logit-bias", "3=100").stdout)["token_ids"] == [3] * 8
    banned = json.loads(run(*base, "--logit-bias", "3=100", "--logit-bias", "4=50", "--logit-bias", "3=-100").stdout)
    assert banned["token_ids"] == [4] * 8
    stopped = json.loads(run(*base, "--logit-bias", "3=100", "--stop-token-id", "5", "--stop-token-id", "3").stdout)
    assert (stopped["token_ids"], stopped["finish_reason"], stopped["stop_id"]) == ([], "stop", 3)


def test_run_prints_the_log_probabilities_of_tokens_and_prompt() -> None:
    args = ["run", str(SEED), "--prompt", "12+", "--temperature", "0", "--ignore-eos", "--json", "--max-tokens", "3"]
    output = json.loads(run(*args, "--logprobs", "2", "--prompt-logprobs", "0").stdout)
    assert [item["token_id"] for item in output["logprobs"]] == output["token_ids"]
    for item in output["logprobs"]:
        assert item["top"][0] == {"token_id": item["token_id"], "logprob": item["logprob"]}
        assert len(item["top"]) == 2
    assert [item["token_id"] for item in output["prompt_logprobs"]] == output["prompt_ids"][1:]
    assert {len(item["top"]) for item in output["prompt_logprobs"]} == {0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["inspect", "nothing-here"], "no such folder"),
        (["run", str(SEED), "--prompt", "1", "--logit-bias", "99=1"], "logit_bias names the id 99"),
        (["run", str(BARE), "--prompt", "1"], "no tokenizer"),
        (["run", str(BARE), "--token-ids", "1", "--stop", "x"], "no tokenizer"),
        (["run", str(SEED), "--token-ids", "1,99"], "between 0 and 31"),
        (["run", str(SEED), "--prompt", "1" * 300], "256"),
        (["run", str(SEED), "--prompt", "€"], None),
        (["run", str(SEED), "--prompt", "1", "--device", "cuda"], "cuda"),
    ],
)
def test_an_error_is_one_line(args: list[str], message: str | None) -> None:
    result = run(*args)
    if message is None:
        # A prompt of only BOS is valid.
        assert result.exit_code == 0
        return
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    copy = shutil.copytree(SEED, tmp_path / "step_000102")
    weights = copy / "model_000102.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = run("inspect", str(copy))
    assert result.exit_code == 1
    assert "model_000102.pt" in result.stderr
    assert "Traceback" not in result.output


def test_a_conversation_carries_out_its_commands() -> None:
    lines = [
        "12+",
        "/temp 0",
        "/tokens 5",
        "12+",
        "/temp 9",
        "/topk x",
        "/topk 3",
        "/topk off",
        "/help",
        "/quit",
        "12+",
    ]
    result = run("run", str(SEED), "--interactive", stdin="\n".join(lines))
    assert result.exit_code == 0, result.output
    greedy = json.loads(
        run("run", str(SEED), "--prompt", "12+", "--temperature", "0", "--max-tokens", "5", "--json").stdout
    )
    shown = result.stdout.split("> ")
    assert shown[4] == f"12+{greedy['text']}\n"
    assert shown[5].startswith("/temp cannot be 9.")
    assert shown[6].startswith("/topk cannot be x.")
    assert len(shown) == 11
