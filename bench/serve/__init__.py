"""`python -m bench.serve`: HTTP clients that measure a running server. `bench.queue` and `bench.guide` use them too."""
