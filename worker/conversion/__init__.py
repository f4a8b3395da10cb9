"""Writes models of other formats as folders of Hugging Face. Nothing here imports torch, except `nanochat`."""
