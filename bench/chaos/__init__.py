"""`python -m bench.chaos`: a chaos test that kills processes while jobs run, and then checks every job.

`tests/faults/test_chaos.py` runs it as a test.
"""
