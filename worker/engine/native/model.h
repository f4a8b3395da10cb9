/* The weights and settings of a model, and the batch of one step.

library.py declares the same structs, and model.py fills them in: a part that a model lacks is a NULL or a zero. The
caller owns all memory. Shapes, here and in all files of the forward pass: T positions of the flattened batch, C
channels, H heads, G key-value heads, D channels of a head, P places of the KV cache, R rows of logits, V ids. */
#pragma once

#include <string.h>

#include "matrix.h"
#include "norm.h"

/* An embedding table of plain rows: FP32, BF16 or FP16. */
typedef struct {
  const void *rows;
  long kind;
} Table;

/* out = `count` numbers of a row, from `begin` on, in a table of rows of n numbers. */
INLINE void look_up(const Table *table, int64_t row, long n, long begin, long count, float *out) {
  long first = row * n + begin;
  if (table->kind == FP32) {
    memcpy(out, (const float *)table->rows + first, count * sizeof(float));
  } else if (table->kind == BF16) {
    for (long i = 0; i < count; i++) out[i] = weight_of(BF16, table->rows, first + i);
  } else {
    for (long i = 0; i < count; i++) out[i] = weight_of(FP16, table->rows, first + i);
  }
}

/* A matrix, and what is added to its products. */
typedef struct {
  Matrix matrix;
  const float *bias; /* NULL: nothing. Filled up to a multiple of COLUMNS */
  const float *gate_bias; /* the same for the gate, where there is one */
} Linear;

/* library.py has the same numbers. */
enum QkNorm { NO_QK_NORM, BEFORE_ROTATION, AFTER_ROTATION };

typedef struct {
  /* With a gate, each panel of mlp_in has LANES outputs of the gate, and as many of the matrix that it is applied to. */
  Linear qkv, attention_out, mlp_in, mlp_out;
  NormWeights attention_norm, mlp_norm;
  const float *q_norm, *k_norm; /* weights (D) of the norm of queries and keys; NULL: none */
  long rotates;
  long window;
  long mixes; /* whether the residual stream and the embedding are mixed before the layer ... */
  float mix_stream, mix_embedding; /* ... with these factors */
  Table value_table; /* rows NULL: the layer has none */
  const float *value_gate; /* (G, gate_width) */
} Layer;

typedef struct {
  long layers, channels, heads, groups, dim, hidden, ids;
  Norm norm;
  long qk_norm;
  float qk_epsilon;
  long activation, gated;
  float attention_scale;
  float softcap; /* 0: logits are not capped */
  long embedding_norm;
  float gate_scale;
  long gate_width, smear_width;
  const float *smear_gate;
  float smear_strength, backout;
  Table table; /* rows NULL: the embedding of a token is its row of the head */
  Table positions; /* rows NULL: none */
  NormWeights final_norm;
  Linear head;
  const float *cosines, *sines; /* (positions, D / 2) */
  const Layer *layer;
} Model;

/* The batch of one step; see worker/engine/batch.py. */
typedef struct {
  long positions, outputs;
  const int64_t *tokens, *previous, *position, *place;
  const int64_t *wanted; /* positions that give logits, in rising order; NULL: all of them, or none */
  long first;            /* the number that the first position has in `wanted` */
  float *cache;          /* (layers, 2, G, P, D) */
  long places;
  long alone;    /* whether each position is the only one of its sequence */
  float *logits; /* (R, V) */
} Pass;
