"""The architecture of a model as data: its shape, its era, its rotation angles and the form of its weights."""
