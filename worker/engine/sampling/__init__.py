"""Sampling: draws the next token of each row from its logits, on torch or on compiled kernels."""
