"""One worker for many checkpoints: it starts and ends ordinary workers of one checkpoint each, as child processes."""
