"""Other engines ("peers") for `bench.engine --vs`, each in a Python environment and a process of its own."""
