"""The calculator of nanochat's models. It does not import torch."""
