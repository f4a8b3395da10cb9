"""Benchmarks: figures of one run, with warm-up and rounds. `make bench` measures the engine."""
