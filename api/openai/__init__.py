"""OpenAI's API on the queue: from its requests to jobs, and from jobs to its answers and chunk streams."""
