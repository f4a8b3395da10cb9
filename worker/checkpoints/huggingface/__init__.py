"""Reads checkpoints in Hugging Face's form: folders as `save_pretrained` of transformers writes them."""
