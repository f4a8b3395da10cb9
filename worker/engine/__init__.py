"""Decoding with torch and compiled kernels. It works on token ids and imports neither Celery nor Redis."""
