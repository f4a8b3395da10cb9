"""Benchmarks and a chaos test. Each folder is one command, and so are `bench.load`, `bench.prefix` and
`bench.vocabulary`; the other files here are shared.

Every benchmark runs warm-up and several rounds, and prints its figures as tables and as one line of JSON.
"""
