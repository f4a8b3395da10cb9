"""What the queue costs: from a request to the engine and back, beside the engine itself."""
