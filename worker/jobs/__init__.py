"""A job's life inside a worker: read and claim it, decode it, publish its tokens, keep its lease, end it."""
