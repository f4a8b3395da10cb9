"""The routes that speak OpenAI's API, one file a family."""
