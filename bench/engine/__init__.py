"""`python -m bench.engine`: speed of the engine alone, compared with the machine's limits and with other engines."""
