"""Compares forms of weights and ways to compute."""
