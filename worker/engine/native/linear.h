/* Linear layers: a gemm shared by the threads of a step, and what becomes of its products. */
#pragma once

#include "activation.h"
#include "gemm.h"
#include "step.h"

/* What becomes of a product: it is stored; added to the residual stream; the activation of it is stored; or, with a
gate, the activation of the gate times the rest. */
enum Epilogue { STORE, ADD, ACTIVATE, GATE };

/* out = the activation of `count` vectors of a product; with a gate, of half as many. */
INLINE void activate_row(const enum Activation activation, const int gated, const Linear *l, const float *products,
                         long count, long column, float *out) {
  if (!gated) {
    for (long i = 0; i < count; i++) {
      vec x = load(products + i * LANES);
      if (l->bias != NULL) x += load(l->bias + column + i * LANES);
      store(out + column + i * LANES, activate(activation, x));
    }
    return;
  }
  for (long i = 0; i < count; i += 2) {
    vec gate = load(products + i * LANES), x = load(products + (i + 1) * LANES);
    long at = column / 2 + i / 2 * LANES;
    if (l->bias != NULL) {
      gate += load(l->gate_bias + at);
      x += load(l->bias + at);
    }
    store(out + at, activate(activation, gate) * x);
  }
}

/* The epilogue for some rows of products (rows, width), which are the outputs from `column` on. Products and activated
rows are filled up to whole panels. */
static void finish_products(enum Epilogue epilogue, enum Activation activation, const Linear *l, const float *products,
                            long rows, long column, long width, float *out, long stride) {
  long outputs = l->matrix.outputs - column < width ? l->matrix.outputs - column : width;
  for (long r = 0; r < rows; r++, products += width, out += stride) {
    float *to = out + column;
    if (epilogue == STORE && l->bias == NULL) {
      memcpy(to, products, outputs * sizeof(float));
    } else if (epilogue == STORE) {
      for (long i = 0; i < outputs; i++) to[i] = products[i] + l->bias[column + i];
    } else if (epilogue == ADD && l->bias == NULL) {
      for (long i = 0; i < outputs; i++) to[i] += products[i];
    } else if (epilogue == ADD) {
      for (long i = 0; i < outputs; i++) to[i] += products[i] + l->bias[column + i];
    } else {
#define CASE(A) \
  case A * 2: activate_row(A, 0, l, products, width / LANES, column, out); break; \
  case A * 2 + 1: activate_row(A, 1, l, products, width / LANES, column, out); break;
      switch (activation * 2 + (epilogue == GATE)) { CASE(RELU_SQUARED) CASE(SILU) CASE(GELU) CASE(GELU_TANH) }
#undef CASE
    }
  }
}

INLINE long rounded_stride(const Matrix *m) { return padded(rounded_floats(m)); }

/* Returns x (rows, depth) rounded for a multiplication with `m`, as rows with the stride `rounded_stride`. */
static const float *round_rows(StepThread *self, const Matrix *m, const float *x, long stride, long rows) {
  const Step *s = self->step;
  long to_stride = rounded_stride(m);
  if (s->threads > 1 && rows * to_stride <= OWN_NUMBERS) {
    float *own = self->scratch + s->scratch_size - WIDENED - OWN_NUMBERS;
    for (long r = 0; r < rows; r++) round_row(m, x + r * stride, own + r * to_stride);
    return own;
  }
  FOR_ROWS(self, rows, r) round_row(m, x + r * stride, s->rounded + r * to_stride);
  next_stage(self);
  return s->rounded;
}

/* out (rows, outputs) = x (rows, depth) times the matrix, followed by an epilogue. */
static void gemm(StepThread *self, enum Epilogue epilogue, const Linear *l, const float *x, long stride, long rows,
                 float *out, long out_stride) {
  const Matrix *m = &l->matrix;
  const Model *model = self->step->model;
  if (rounds_activations(m)) {
    x = round_rows(self, m, x, stride, rows);
    stride = rounded_stride(m);
  }
  long panels = panel_count(m), at_once = panels_for(rows), threads = self->step->threads;
  /* As many shares for each thread, so that all threads end at the same time if nothing disturbs them. */
  long shares = panels / (at_once * threads);
  shares = (shares < 1 ? 1 : shares > 8 ? 8 : shares) * threads;
  for (long share = take_items(self, 1); share < shares; share = take_items(self, 1)) {
    long begin = panels * share / shares, end = panels * (share + 1) / shares;
    long tiles = (end - begin + at_once - 1) / at_once;
    for (long tile = 0; tile < tiles; tile++) {
      long first = begin + (end - begin) * tile / tiles;
      int count = (int)(begin + (end - begin) * (tile + 1) / tiles - first);
      multiply_panels(rows, count, x, stride, m, first, self->scratch,
                      self->scratch + self->step->scratch_size - WIDENED);
      finish_products(epilogue, epilogue > ADD ? (enum Activation)model->activation : RELU_SQUARED, l, self->scratch,
                      rows, first * COLUMNS, count * COLUMNS, out, out_stride);
    }
  }
  next_stage(self);
}
