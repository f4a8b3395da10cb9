"""Bodies in and out, as pydantic models, a file for each family of routes."""
