"""Real workers, API processes and a Redis that are killed again and again while jobs run, and a verdict on every job.

`python -m bench.chaos` runs it for people, `tests/faults/test_chaos.py` as a test.
"""
