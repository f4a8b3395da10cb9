"""The architecture of a model as data: its description, its tensors, nanochat's eras, and the form of its weights."""
