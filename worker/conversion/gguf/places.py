"""Where the tensors of a GGUF file go: llama.cpp's names and Hugging Face's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: llama.cpp puts the two channels that are rotated together side by side in these architectures.
_INTERLEAVED = ("llama", "smollm3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a model."""

    #: Rows of the embedding.
    rows: int
    layers: int
    width: int
    #: Width inside the MLP.
    inner: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    #: Whether the embedding is the head as well.
    tied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor of the file goes."""

    source: str
    #: Hugging Face's name.
    name: str
    #: In the file, rows first.
    shape: tuple[int, ...]
    #: Whether it is a matrix that the model multiplies with.
    is_matrix: bool = False
    #: The number of heads whose rows have the two channels of a rotation side by side; 0: they are in two halves, as
    #: Hugging Face has them.
    interleaved_heads: int = 0
    #: Whether Hugging Face has rows and columns exchanged.
    transposed: bool = False


def gpt2_places(sizes: Sizes) -> Iterator[Place]:
    """The tensors of GPT-2."""
    width, inner = sizes.width, sizes.inner
    yield _matrix("token_embd", "transformer.wte", sizes.rows, width)
    # llama.cpp always stores it as fp32.
    yield Place(source="position_embd.weight", name="transformer.wpe.weight", shape=(sizes.context, width))
    for i in range(sizes.layers):
        source, name = f"blk.{i}.", f"transformer.h.{i}."
        for norm, own in (("attn_norm", "ln_1"), ("ffn_norm", "ln_2")):
            yield _vector(f"{source}{norm}.weight", f"{name}{own}.weight", width)
            yield _vector(f"{source}{norm}.bias", f"{name}{own}.bias", width)
        for part, own, out, columns in (
            ("attn_qkv", "attn.c_attn", 3 * width, width),
            ("attn_output", "attn.c_proj", width, width),
            ("ffn_up", "mlp.c_fc", inner, width),
            ("ffn_down", "mlp.c_proj", width, inner),
        ):
            yield _matrix(f"{source}{part}", f"{name}{own}", out, columns, transposed=True)
            yield _vector(f"{source}{part}.bias", f"{name}{own}.bias", out)
    yield _vector("output_norm.weight", "transformer.ln_f.weight", width)
    yield _vector("output_norm.bias", "transformer.ln_f.bias", width)
    if not sizes.tied:
        yield _matrix("output", "lm_head", sizes.rows, width)


def llama_places(sizes: Sizes, architecture: str, *, attention_bias: bool, mlp_bias: bool) -> Iterator[Place]:
    """The tensors of Llama and the architectures like it."""
    width, inner = sizes.width, sizes.inner
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    interleaved = architecture in _INTERLEAVED
    yield _matrix("token_embd", "model.embed_tokens", sizes.rows, width)
    for i in range(sizes.layers):
        source, name = f"blk.{i}.", f"model.layers.{i}."
        yield _vector(f"{source}attn_norm.weight", f"{name}input_layernorm.weight", width)
        yield _vector(f"{source}ffn_norm.weight", f"{name}post_attention_layernorm.weight", width)
        for part, own, out, columns, heads in (
            ("attn_q", "self_attn.q_proj", queries, width, sizes.heads if interleaved else 0),
            ("attn_k", "self_attn.k_proj", keys, width, sizes.kv_heads if interleaved else 0),
            ("attn_v", "self_attn.v_proj", keys, width, 0),
            ("attn_output", "self_attn.o_proj", width, queries, 0),
            ("ffn_gate", "mlp.gate_proj", inner, width, 0),
            ("ffn_up", "mlp.up_proj", inner, width, 0),
            ("ffn_down", "mlp.down_proj", width, inner, 0),
        ):
            yield _matrix(f"{source}{part}", f"{name}{own}", out, columns, heads=heads)
            # Qwen 2 has them for queries, keys and values only.
            has_bias = mlp_bias if own.startswith("mlp") else attention_bias
            if has_bias and not (architecture == "qwen2" and part == "attn_output"):
                yield _vector(f"{source}{part}.bias", f"{name}{own}.bias", out, heads=heads)
        if architecture == "qwen3":
            for part in ("q_norm", "k_norm"):
                yield _vector(f"{source}attn_{part}.weight", f"{name}self_attn.{part}.weight", sizes.head_dim)
    yield _vector("output_norm.weight", "model.norm.weight", width)
    if not sizes.tied:
        yield _matrix("output", "lm_head", sizes.rows, width)


def _matrix(source: str, name: str, rows: int, columns: int, *, heads: int = 0, transposed: bool = False) -> Place:
    return Place(
        source=f"{source}.weight",
        name=f"{name}.weight",
        shape=(rows, columns),
        is_matrix=True,
        interleaved_heads=heads,
        transposed=transposed,
    )


def _vector(source: str, name: str, size: int, *, heads: int = 0) -> Place:
    return Place(source=source, name=name, shape=(size,), interleaved_heads=heads)
