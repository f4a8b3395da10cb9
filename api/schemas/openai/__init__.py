"""Bodies of the routes that speak OpenAI's API."""
