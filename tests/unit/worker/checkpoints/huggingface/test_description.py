"""`config.json` of every family becomes the description of a model, in old and new spellings, or is refused by name."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.huggingface_folders import FAMILIES, GOLDEN_HF, LEFT_OUT, changed, golden
from tests.unit.worker.checkpoints.huggingface import known_configs as known
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.huggingface import config
from worker.checkpoints.huggingface.description import describe
from worker.checkpoints.huggingface.families import FAMILIES as FAMILY_TABLE
from worker.engine.architecture.config import ModelConfig, Norm, QkNorm

ROPES = json.loads((GOLDEN_HF.parent / "rope_frequencies.json").read_text())["cases"]
#: The smallest configuration of a family; the defaults of transformers are used for everything else.
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def described(path: Path, content: dict[str, Any], **changes: Any) -> ModelConfig:
    path.write_text(json.dumps(content))
    changed(path, **changes)
    return describe(config.read(path))


def refusal(path: Path, content: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        described(path, content, **changes)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def shape(found: ModelConfig) -> tuple[int, ...]:
    return (found.n_layer, found.n_embd, found.n_head, found.n_kv_head, found.head_dim, found.n_hidden)


@pytest.mark.parametrize(
    ("content", "sizes", "context", "base", "tied"),
    [
        (known.LLAMA_2_7B, (32, 4096, 32, 32, 128, 11008), 4096, "default, base 10000", False),
        (known.TINY_LLAMA, (22, 2048, 32, 4, 64, 5632), 2048, "default, base 10000", False),
        (known.LLAMA_3_2_1B, (16, 2048, 32, 8, 64, 8192), 131072, "llama3, base 500000, factor 32", True),
        (known.SMOLLM2_135M, (30, 576, 9, 3, 64, 1536), 8192, "default, base 100000", True),
        (known.MISTRAL_7B_V01, (32, 4096, 32, 8, 128, 14336), 32768, "default, base 10000", False),
        (known.MISTRAL_7B_V03, (32, 4096, 32, 8, 128, 14336), 32768, "default, base 1e+06", False),
        (known.QWEN2_5_HALF_B, (24, 896, 14, 2, 64, 4864), 32768, "default, base 1e+06", True),
        (known.QWEN3_600M, (28, 1024, 16, 8, 128, 3072), 40960, "default, base 1e+06", True),
        (known.SMOLLM3_3B, (36, 2048, 16, 4, 128, 11008), 65536, "default, base 5e+06", True),
        (known.GPT_2, (12, 768, 12, 12, 64, 3072), 1024, None, True),
        (known.DISTIL_GPT_2, (6, 768, 12, 12, 64, 3072), 1024, None, True),
    ],
)
def test_models_that_many_people_run(
    path: Path, content: dict[str, Any], sizes: tuple[int, ...], context: int, base: str | None, tied: bool
) -> None:
    found = described(path, content)
    assert (shape(found), found.sequence_len, found.tied_head) == (sizes, context, tied)
    assert (found.family, found.era, found.vocab_size, found.rows) == (
        *(content["model_type"], None, content["vocab_size"], content["vocab_size"]),
    )
    assert (None if found.rope is None else found.rope.origin) == base
    assert found.attention_scale == pytest.approx(found.head_dim**-0.5)
    assert found.windows == (4095 if content is known.MISTRAL_7B_V01 else context,) * sizes[0]
    assert config.sizes(config.read(path)) == (found.vocab_size, context)


def test_the_parts_of_each_family() -> None:
    """What distinguishes the families, in the reference folders."""
    weighted = Norm(kind="rms", epsilon=1e-6, weights=True)
    found = {family: golden(family).config for family in FAMILIES}
    assert {family: one.norm for family, one in found.items()} == {
        **dict.fromkeys(("qwen2", "qwen3", "smollm3"), weighted),
        **dict.fromkeys(("llama", "mistral"), Norm(kind="rms", epsilon=1e-5, weights=True)),
        "gpt2": Norm(kind="layer", epsilon=1e-5, weights=True),
        "nanochat": Norm(kind="rms", epsilon=1e-6, weights=False),
    }
    assert {family: one.qk_norm for family, one in found.items() if one.qk_norm is not None} == {
        "qwen3": QkNorm(after_rotation=False, epsilon=1e-6, weights=True),
        "nanochat": QkNorm(after_rotation=True, epsilon=1e-6, weights=False),
    }
    assert {family for family, one in found.items() if one.qkv_bias} == {"gpt2", "qwen2"}
    assert {family for family, one in found.items() if one.attention_out_bias or one.mlp_bias} == {"gpt2"}
    assert {family for family, one in found.items() if not one.gated} == {"gpt2", "nanochat"}
    assert {family: one.activation for family, one in found.items() if one.activation != "silu"} == {
        "gpt2": "gelu_tanh",
        "nanochat": "relu_squared",
    }
    assert {family for family, one in found.items() if one.embedding_norm} == {"nanochat"}
    assert {family: one.softcap for family, one in found.items() if one.softcap is not None} == {"nanochat": 15.0}
    assert {family for family, one in found.items() if one.learned_positions or one.rope is None} == {"gpt2"}
    assert {family for family, one in found.items() if one.rope is not None and one.rope.direction < 0} == {"nanochat"}
    assert found["smollm3"].rope_layers == (True, True, True, False)
    assert found["mistral"].windows == (31,) * 4
    assert found["qwen3"].head_dim == 32


@pytest.mark.parametrize("case", ROPES, ids=lambda case: json.dumps(case["config"])[:200])
def test_rotary_frequencies_are_those_of_transformers(path: Path, case: dict[str, Any]) -> None:
    rope = described(path, case["config"]).rope
    assert rope is not None
    # In the last digit, another processor may compute a power differently.
    assert list(rope.frequencies) == pytest.approx(case["frequencies"], rel=1e-6, abs=0)
    assert rope.amplitude == pytest.approx(case["amplitude"], rel=1e-12)


@pytest.mark.parametrize(
    ("family", "keys", "windows"),
    [
        ("mistral", {"sliding_window": 8}, [7] * 4),
        ("mistral", {"sliding_window": 8, "use_sliding_window": False}, [7] * 4),
        ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 4}, [7] * 4),
        ("mistral", {"sliding_window": 1}, [0] * 4),
        ("mistral", {"sliding_window": 500}, [64] * 4),
        ("mistral", {"sliding_window": None}, [64] * 4),
        ("mistral", {}, [64] * 4),
        ("llama", {"sliding_window": 8}, [64] * 4),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}, [64, 64, 7, 7]),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, [7] * 4),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, [64] * 4),
        ("qwen2", {"sliding_window": 8, "max_window_layers": 0}, [64] * 4),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": "SFSF"}, [7, 64, 7, 64]),
        ("qwen3", {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, [64] * 4),
        ("smollm3", {"sliding_window": 8, "use_sliding_window": True}, [64, 64, 64, 7]),
        ("smollm3", {"sliding_window": 8, "use_sliding_window": True, "no_rope_layers": [0, 1, 0, 1]}, [7, 64, 7, 64]),
        ("smollm3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": "SFFF"}, [7, 64, 64, 64]),
        ("smollm3", {"sliding_window": 8}, [64] * 4),
    ],
)
def test_windows_by_layer(path: Path, family: str, keys: dict[str, Any], windows: list[int]) -> None:
    """A window of transformers counts the token itself, that of the engine only the ones before it."""
    if isinstance(letters := keys.get("layer_types"), str):
        kinds = {"S": "sliding_attention", "F": "full_attention"}
        keys = keys | {"layer_types": [kinds[letter] for letter in letters]}
    content = SMALL | {"model_type": family, "max_position_embeddings": 64}
    assert list(described(path, content | keys).windows) == windows


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({}, [1, 1, 1, 0]),
        ({"no_rope_layer_interval": 2}, [1, 0, 1, 0]),
        ({"no_rope_layers": [0, 0, 1, 1, 1]}, [0, 0, 1, 1]),
        ({"no_rope_layers": [True, False, True, False]}, [1, 0, 1, 0]),
        ({"no_rope_layers": None, "no_rope_layer_interval": 3}, [1, 1, 0, 1]),
    ],
)
def test_layers_without_rotation(path: Path, keys: dict[str, Any], layers: list[int]) -> None:
    assert list(described(path, SMALL | {"model_type": "smollm3"} | keys).rope_layers) == layers


def test_keys_that_are_missing_have_the_defaults_of_transformers(path: Path) -> None:
    assert shape(described(path, {"model_type": "llama"})) == (32, 4096, 32, 32, 128, 11008)
    assert shape(described(path, {"model_type": "mistral"})) == (32, 4096, 32, 8, 128, 14336)
    assert shape(described(path, {"model_type": "qwen3"})) == (32, 4096, 32, 32, 128, 22016)
    assert shape(described(path, {"model_type": "gpt2"})) == (12, 768, 12, 12, 64, 3072)
    assert shape(described(path, {"model_type": "nanochat"})) == (12, 768, 6, 6, 128, 8192)
    tied = {family: described(path, SMALL | {"model_type": family}).tied_head for family in FAMILIES}
    assert {family for family, one in tied.items() if one} == {"gpt2", "smollm3"}


@pytest.mark.parametrize(
    ("name", "activation"),
    [("silu", "silu"), ("swish", "silu"), ("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("relu2", "relu_squared")],
)
def test_activations(path: Path, name: str, activation: str) -> None:
    assert described(path, SMALL | {"model_type": "llama", "hidden_act": name}).activation == activation


def test_gpt2_may_leave_the_products_of_attention_unscaled(path: Path) -> None:
    assert described(path, known.GPT_2, scale_attn_weights=False).attention_scale == 1.0
    assert described(path, known.GPT_2, n_inner=100).n_hidden == 100


def test_biases_are_switched_by_their_keys(path: Path) -> None:
    for family in ("llama", "smollm3"):
        found = described(path, SMALL | {"model_type": family, "attention_bias": True, "mlp_bias": True})
        assert (found.qkv_bias, found.attention_out_bias, found.mlp_bias) == (True, True, True)
    found = described(path, SMALL | {"model_type": "qwen2", "attention_bias": False})
    assert (found.qkv_bias, found.attention_out_bias, found.mlp_bias) == (True, False, False)


def test_harmless_keys_are_ignored(path: Path) -> None:
    plain = described(path, known.LLAMA_2_7B)
    harmless = {
        "use_cache": False,
        "initializer_range": 1.0,
        "attention_dropout": 0.5,
        "_attn_implementation": "flash_attention_2",
        "quantization_config": None,
        "auto_map": {},
        "num_experts": 0,
        "partial_rotary_factor": 1.0,
        "anything": {"at": ["all"]},
        "dtype": "float64",
    }
    assert described(path, known.LLAMA_2_7B | harmless) == plain


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, "`auto_map` names code that comes with the model"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            '`quantization_config` says .* quantised \\("gptq"',
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "`quantization_config` .*fp8"),
        ({"compression_config": {"format": "int"}}, "`compression_config`"),
        ({"num_local_experts": 8}, "`num_local_experts` belongs to a mixture of experts"),
        ({"num_experts": 4}, "mixture of experts"),
        ({"is_encoder_decoder": True}, "`is_encoder_decoder`"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is not 1"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor` is not 1",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, '`rope_parameters.rope_type` is "dynamic"'),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            '"longrope", which is not supported; supported are default, li',
        ),
        ({"rope_scaling": {"type": "su"}}, '`rope_scaling.rope_type` is "su"'),
        ({"rope_scaling": {"type": ["yarn"]}}, "`rope_scaling.rope_type` is"),
        ({"rope_scaling": {"type": "linear"}}, "`rope_scaling.factor` is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "`rope_scaling.factor` must be a finite number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "`rope_scaling.factor` must be"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "`rope_scaling.factor` must be"),
        ({"rope_scaling": "linear"}, "`rope_scaling` must be an object"),
        (
            {"rope_scaling": {"type": "default", "mrope_section": [1, 2]}},
            "`rope_scaling.mrope_section` is not supported",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "`rope_parameters.full_attention` is an object"),
        ({"rope_parameters": {"rope_theta": 0.5}}, "`rope_parameters.rope_theta` must be above 1"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
            "`rope_scaling.high_freq_factor` must be above low_freq_factor",
        ),
        ({"rope_interleaved": True}, "`rope_interleaved`"),
        ({"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping`"),
        ({"embedding_multiplier": 12.0}, "`embedding_multiplier` is a factor other than 1"),
        ({"hidden_act": "quick_gelu"}, '`hidden_act` is "quick_gelu", which is not supported; supported are silu'),
        ({"hidden_act": None}, "`hidden_act` must be a string, not null"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "`architectures` names .* does not generate text"),
        (
            {"layer_types": ["full_attention"] * 31},
            "`layer_types` must be a list with an item for each of the 32 layers",
        ),
        ({"layer_types": ["chunked_attention"] * 32}, '`layer_types` has "chunked_attention"'),
        ({"layer_types": ["sliding_attention"] * 32}, "`layer_types` names other layers with a window than llama has"),
        ({"hidden_size": "4096"}, '`hidden_size` must be an integer from 1 to 65536, not "4096"'),
        ({"hidden_size": True}, "`hidden_size` must be an integer"),
        ({"hidden_size": 0}, "`hidden_size` must be an integer"),
        ({"hidden_size": 4095}, "its width of 4095 cannot be divided among 32 heads"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` must be an integer from 1 to 1024"),
        ({"num_key_value_heads": 5}, "n_head 32 cannot be divided among n_kv_head 5"),
        ({"head_dim": 127}, "`head_dim` is 127; rotary positions need an even number"),
        ({"rms_norm_eps": -1}, "`rms_norm_eps` must be a finite number above 0"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` must be a finite number above 0"),
        ({"tie_word_embeddings": "yes"}, "`tie_word_embeddings` must be true or false"),
        ({"attention_bias": 1}, "`attention_bias` must be true or false"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(path: Path, changes: dict[str, Any], reason: str) -> None:
    message = refusal(path, known.LLAMA_2_7B, **changes)
    assert len(message) < 600
    assert re.search(reason, message), message


@pytest.mark.parametrize(
    ("content", "changes", "reason"),
    [
        (known.GPT_2, {"add_cross_attention": True}, "`add_cross_attention` is true"),
        (known.GPT_2, {"scale_attn_by_inverse_layer_idx": True}, "`scale_attn_by_inverse_layer_idx` is true"),
        (known.GPT_2, {"activation_function": "relu"}, '`activation_function` is "relu"'),
        (known.GPT_2, {"n_embd": 770}, "cannot be divided among 12 heads"),
        (known.GPT_2, {"n_layer": None}, "`n_layer` must be an integer from 1 to 1024, not null"),
        (known.QWEN3_600M, {"layer_types": ["sliding_attention"] * 28}, "`layer_types` has sliding_attention, but"),
        (known.MISTRAL_7B_V01, {"sliding_window": 0}, "`sliding_window` must be an integer from 1"),
        (
            known.MISTRAL_7B_V01,
            {"layer_types": ["full_attention"] * 32},
            "names other layers with a window than mistral",
        ),
        (known.SMOLLM3_3B, {"no_rope_layers": [2] * 36}, "`no_rope_layers` must hold 1 for each layer"),
        (known.SMOLLM3_3B, {"no_rope_layers": []}, "`no_rope_layers` must be a list with an item for each"),
        (known.SMOLLM3_3B, {"no_rope_layers": None, "no_rope_layer_interval": 0}, "`no_rope_layer_interval` must be"),
    ],
)
def test_what_a_family_does_not_support_is_refused_by_name(
    path: Path, content: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(path, content, **changes)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("mixtral", "it needs mixtures of experts"),
        ("qwen3_moe", "it needs mixtures of experts"),
        ("gpt_oss", "it needs mixtures of experts"),
        ("gemma3_text", "it needs scaled embeddings"),
        ("phi3", "it needs rotation of some channels only"),
        ("qwen2_vl", "it needs images or sound"),
        ("t5", "it needs encoders"),
        ("mamba2", "it needs layers that are not attention"),
        ("new", "not supported; supported are llama, mistral, qwen2, qwen3, smollm3, gpt2, nanochat"),
        (7, "is 7, which is not supported"),
        (["llama"], "which is not supported"),
    ],
)
def test_other_families_are_refused_with_what_is_missing(path: Path, kind: object, missing: str) -> None:
    message = refusal(path, known.LLAMA_2_7B, model_type=kind)
    assert message.startswith("`model_type` is ")
    assert missing in message


def test_a_file_without_a_family_is_refused(path: Path) -> None:
    assert "`model_type` is missing" in refusal(path, known.LLAMA_2_7B, model_type=LEFT_OUT)
    for text in ("", "[]", "{", "version https://git-lfs.github.com/spec/v1\n"):
        path.write_text(text)
        with pytest.raises(CheckpointError):
            config.read(path)


#: Values of every type and size, some of which are right for some key.
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        7,
        64,
        -1,
        10**9,
        10**400,
        0.0,
        0.5,
        1e-320,
        1e300,
        math.nan,
        math.inf,
        "",
        "silu",
        "yarn",
    ),
    *([], [1], [None] * 4, [1, 1, 1, 0], ["full_attention"] * 4, ["sliding_attention"] * 4, {}, {"a": 1}, "x" * 10_000),
    *({"type": "yarn", "factor": 4.0}, {"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1}),
    *({"type": "yarn", "factor": 2, "beta_fast": 1e-300, "beta_slow": 1e300}, {"type": "linear", "factor": 1e-320}),
    *({"type": "yarn", "factor": 2, "mscale": 1e300, "mscale_all_dim": 1e-300}, {"rope_theta": 1.0000001}),
]
KEYS = sorted(
    {key for family in FAMILY_TABLE.values() for key in family.defaults}
    | {"head_dim", "rope_parameters", "rope_scaling", "rope_theta", "layer_types", "no_rope_layers", "architectures"}
    | {"original_max_position_embeddings", "partial_rotary_factor", "quantization_config", "model_type", "n_inner"}
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(FAMILY_TABLE)),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=4),
)
def test_any_values_are_described_or_refused_with_a_short_sentence(family: str, values: dict[str, Any]) -> None:
    small = {"model_type": family, "num_hidden_layers": 4, "n_layer": 4}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(small | values))
        try:
            found = describe(config.read(path))
        except CheckpointError as error:
            assert len(str(error)) < 1200  # noqa: PT017
            return
        assert found.rope is None or all(math.isfinite(one) for one in found.rope.frequencies)
