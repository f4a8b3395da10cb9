"""Reads checkpoints: their files, weights, tokenizers and cards. Knows neither Celery nor Redis."""
