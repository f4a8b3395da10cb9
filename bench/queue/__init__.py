"""`python -m bench.queue`: latency, throughput and memory that the queue adds to the engine."""
