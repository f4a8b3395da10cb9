"""Reads checkpoints: their files, weights, tokenizers and cards. Imports neither Celery nor Redis."""
